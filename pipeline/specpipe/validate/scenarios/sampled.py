"""Sampled answers: speculation must not change their distribution, and a request keeps its seed.

Three tests. The outcomes of both arms are compared as two samples. Every token is compared with the
reference: its place in the reference's cumulative distribution, drawn within its own probability,
is uniform if the token was drawn from that distribution. And requests in text with a seed that was
sent before must have the same answer.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from specpipe.core.contracts import Floats
from specpipe.core.statistics import two_samples, uniformity
from specpipe.serve.client import Client, Options
from specpipe.validate.answers import Answer, PromptItem, PromptRequest, ask, good
from specpipe.validate.arms import ServedArm
from specpipe.validate.checks import Check
from specpipe.validate.scenarios import Grading, Measured, Result, Scenario, Setup, Sheet
from specpipe.validate.trials import Arm

LEAST_P = 5e-4  # a smaller p-value fails
MOST_NOISE = 0.05  # nats: the tokens of a coarser engine are not compared with the reference
REPEATED = 4  # seeds that are sent again, as text


def dataset(setup: Setup) -> Sequence[PromptItem]:
    """Return the shortest prompts."""
    count = setup.config.validate.sampled.num_prompts
    return [
        PromptItem(q) for q in sorted(setup.questions.asked, key=lambda q: len(q.tokens))[:count]
    ]


def options_of(setup: Setup, seed: int) -> Options:
    """Return the options of a sampled request."""
    options = setup.config.validate.sampled
    return Options(
        max_tokens=options.max_tokens, temperature=options.temperature, top_p=1.0, seed=seed
    )


def sampling(setup: Setup) -> Sequence[Options]:
    """Return the options of every seed."""
    return [options_of(setup, seed) for seed in range(1, setup.config.validate.sampled.seeds + 1)]


@dataclass(frozen=True)
class Repeated:
    """Two text answers to the same request: prompt, seed and arm."""

    prompt: int
    seed: int
    arm: Arm
    texts: tuple[str, str]


def measure(client: Client, setup: Setup, arms: Sequence[ServedArm]) -> list[Repeated]:
    """Send some seeds twice as text, without speculation where a request can turn it off."""
    found = []
    for number, item in enumerate(dataset(setup)):
        for seed in range(1, REPEATED + 1):
            request = PromptRequest("sampled", item, number, arms[0], "", options_of(setup, seed))
            first, second = (ask(client, request, setup.questions) for _ in range(2))
            texts = (first.error or first.text, second.error or second.text)
            found.append(Repeated(number, seed, arms[0].arm, texts))
    return found


def grade(measured: Measured, grading: Grading) -> Result:
    """Return the p-values as checks."""
    answers = list(good(measured.answers))
    rows: list[list[str]] = []
    checks = list(_checks(measured, answers, grading))
    for check in checks:
        rows.append([check.name, "passed" if check.passed else "FAILED", check.seen])
    sheet = Sheet("Sampled answers", f"A p-value below {LEAST_P:g} fails.", ("", "", ""), rows)
    return Result("sampled", sheets=(sheet,), checks=checks)


def _checks(measured: Measured, answers: Sequence[Answer], grading: Grading) -> Iterator[Check]:
    errors = len(measured.answers) - len(answers)
    yield Check("every sampled request has an answer", errors == 0, f"{errors} failed")
    arms = list(dict.fromkeys(answer.arm for answer in answers))
    if len(arms) == 2:
        p = two_samples(list(groups(answers)))
        name = "sampled answers have the same distribution with and without speculation"
        yield Check(name, p >= LEAST_P, f"p = {p:.2g} over {len(answers)} answers")
    for arm in arms:
        yield from _with_reference([a for a in answers if a.arm == arm and a.tokens], grading)
    repeated = [one for found in measured.extra for one in found]  # type: ignore[attr-defined]
    yield from _repeats(repeated, answers, grading)


def groups(
    answers: Sequence[Answer],
) -> Iterator[tuple[Sequence[Hashable], Sequence[Hashable]]]:
    """Yield the outcomes of plain and speculative answers by prompt and position."""
    by_prompt: dict[int, dict[Arm, list[Answer]]] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        by_prompt[answer.prompt][answer.arm].append(answer)
    for arms in by_prompt.values():
        both = [arms["plain"], arms["speculative"]]
        if all(answer.tokens for found in both for answer in found):
            for place in range(max(len(a.tokens) for found in both for a in found)):
                yield _at(both[0], place), _at(both[1], place)
        else:
            yield [a.text[:12] for a in both[0]], [a.text[:12] for a in both[1]]


def _at(answers: Sequence[Answer], place: int) -> list[Hashable]:
    return [a.tokens[place] if place < len(a.tokens) else None for a in answers]


def _with_reference(answers: Sequence[Answer], grading: Grading) -> Iterator[Check]:
    if not answers:
        return
    name = f"sampled answers are drawn from the reference's distribution, {answers[0].arm}"
    precision = grading.noise.precision
    if precision is None or precision > MOST_NOISE:
        known = "not known" if precision is None else f"{precision:.2g} nats"
        yield Check(name, True, f"not compared: the engine's distance from it is {known}")
        return
    temperature = grading.setup.config.validate.sampled.temperature
    places = list(cumulative(answers, grading, temperature))
    p = uniformity(places)
    yield Check(name, p >= LEAST_P, f"p = {p:.2g} over {len(places)} tokens")


def cumulative(answers: Sequence[Answer], grading: Grading, temperature: float) -> Iterator[float]:
    """Yield, for every token, a uniform place if it was drawn from the reference's distribution.

    Tokens are ordered by probability: the place is that of all likelier tokens, plus a random share
    of the token's own (the randomized probability integral transform).
    """
    rng = np.random.default_rng(0)
    read: dict[tuple[int, ...], Floats] = {}
    for answer in answers:
        key = (*answer.asked, *answer.tokens)
        if key not in read:
            read[key] = grading.judge.rows(key[:-1], len(answer.tokens))
        for row, token in zip(read[key], answer.tokens, strict=True):
            scaled = np.exp((row - row.max()) / temperature)
            scaled /= scaled.sum()
            likelier = scaled > scaled[token]
            yield float(scaled[likelier].sum() + rng.random() * scaled[token])


def _repeats(
    repeated: Sequence[Repeated], answers: Sequence[Answer], grading: Grading
) -> Iterator[Check]:
    """Check that a seed repeats its answer, and that text and token requests agree."""
    if not repeated:
        return
    changed = [one for one in repeated if one.texts[0] != one.texts[1]]
    seen = f"{len(changed)} of {len(repeated)} differ"
    yield Check("the same seed gives the same answer", not changed, seen)
    decode = grading.setup.questions.tokenizer.decode_answer
    known = {(a.prompt, a.seed, a.arm): decode(a.tokens) for a in answers if a.tokens}
    pairs = [(one, known.get((one.prompt, one.seed, one.arm))) for one in repeated]
    other = [one for one, text in pairs if text is not None and text != one.texts[0]]
    compared = sum(text is not None for _, text in pairs)
    if compared:
        name = "text and token requests with the same seed have the same answer"
        yield Check(name, not other, f"{len(other)} of {compared} differ")


SCENARIO = Scenario(
    "sampled",
    "Short answers with many seeds: their distribution with and without speculation.",
    grade,
    dataset=dataset,
    sampling=sampling,
    as_tokens=True,
    measure=measure,
)
