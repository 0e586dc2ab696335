"""Long prompts and long answers: where they diverge, how many are equal, whether they repeat.

The prompts are also sent so that the server may reuse the KV cache of earlier ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from specpipe.core.conversation import Conversation
from specpipe.core.errors import ConfigError
from specpipe.core.prompts import read_prompts
from specpipe.serve.client import Client, Options
from specpipe.validate.answers import Answer, PromptItem, PromptRequest, ask, good
from specpipe.validate.arms import ServedArm
from specpipe.validate.differences import HEAD, Equality, compare
from specpipe.validate.measure import decodes_alike
from specpipe.validate.metrics import Figure, share_of
from specpipe.validate.pairs import pair
from specpipe.validate.questions import Question
from specpipe.validate.scenarios import Grading, Measured, Result, Scenario, Setup, Sheet
from specpipe.validate.scenarios.answers import CLASSES, note
from specpipe.validate.trials import Arm, ExpectedAnswer

GRAM = 4  # tokens of a repeated part
CACHED = "prefix cache"


def most_tokens(setup: Setup) -> int:
    """Return the length of answers: at most half of what a sequence may have."""
    return min(setup.config.validate.long.max_tokens, setup.config.engine.max_seq_len // 2)


def dataset(setup: Setup) -> Sequence[PromptItem]:
    """Return prompts of every length that the engine takes, at most as long as configured."""
    engine, options = setup.config.engine, setup.config.validate.long
    room = min(engine.max_input_len, engine.max_seq_len - most_tokens(setup))
    lengths = sorted({min(length, room) for length in options.input_tokens})
    return [
        PromptItem(_question(setup, length, number), f"{length} tokens")
        for length in lengths
        for number in range(options.num_prompts)
    ]


def _question(setup: Setup, length: int, number: int) -> Question:
    """Return a question over many sentences with at most `length` tokens."""
    sentences = read_prompts(None)
    tokenizer = setup.questions.tokenizer
    chats = setup.questions.tokenizer.template is not None
    low, high, found = 0, 2 * length, None
    while low < high:  # the largest number of sentences that fits
        middle = (low + high + 1) // 2
        text = _text(sentences, middle, number)
        prompt = Conversation.of(text) if chats else text
        try:
            tokens = tokenizer.encode_prompt(prompt, length)
        except ConfigError:
            high = middle - 1
            continue
        low, found = middle, Question(prompt, tuple(tokens))
    if found is None:
        raise ConfigError(f"validate.long: no prompt fits into {length} tokens")
    return found


def _text(sentences: Sequence[str], count: int, number: int) -> str:
    """Return numbered notes, and a request that needs them; prompts of one length share notes."""
    notes = [f"Note {i + 1}: {sentences[i % len(sentences)]}" for i in range(count)]
    return "\n".join([*notes, f"Continue with note {number + 1} and those after it."])


def sampling(setup: Setup) -> Sequence[Options]:
    """Return greedy options for a long answer."""
    return (Options(max_tokens=most_tokens(setup)),)


def measure(client: Client, setup: Setup, arms: Sequence[ServedArm]) -> list[Answer]:
    """Send every prompt twice more; the server may find the KV cache of prompts before.

    The prompts of one length begin alike, so a part of the cache belongs to another prompt.
    """
    arm = arms[-1]
    as_tokens = decodes_alike(client.endpoint.tokens, arm.arm)
    options, found = sampling(setup)[0], []
    for _ in range(2):
        for number, item in enumerate(dataset(setup)):
            request = PromptRequest("long", item, number, arm, CACHED, options, as_tokens, True)
            found.append(ask(client, request, setup.questions))
    return found


def grade(measured: Measured, grading: Grading) -> Result:
    """Return the first divergence, the share of equal answers, and the repetition of each arm."""
    cached = [answer for part in measured.extra for answer in part]  # type: ignore[attr-defined]
    measured = replace(measured, answers=(*measured.answers, *cached))
    expected = dict(_expected(measured, grading))
    contrasts = pair(measured.answers, expected)
    tokenizer = grading.setup.questions.tokenizer
    equal = compare(contrasts, grading.judge, tokenizer, grading.noise)
    rows = [_row(answer, expected, equal) for answer in good(measured.answers)]
    head = ("prompt", "arm", "output tokens", "first divergent token", "repeated, share")
    sheets = [
        Sheet("Long prompts and answers", "Divergence is from the reference.", head, rows),
        Sheet(CLASSES, note(grading), HEAD, equal.rows()),
    ]
    return Result(
        "long", figures={"long_equal": dict(_shares(equal))}, sheets=sheets, equality=equal
    )


def _expected(measured: Measured, grading: Grading) -> Iterator[tuple[int, ExpectedAnswer]]:
    """Let the reference answer every prompt once."""
    questions = grading.setup.questions
    asked = {answer.prompt: answer for answer in good(measured.answers)}
    for number, answer in asked.items():
        found = grading.judge.model.generate(answer.asked, answer.max_tokens, questions.end_ids)
        text = questions.tokenizer.decode_answer(found.tokens)
        yield number, ExpectedAnswer(text, found.tokens, found.margins)


def _row(answer: Answer, expected: dict[int, ExpectedAnswer], equal: Equality) -> list[str]:
    differ = equal.of(answer.arm, "reference")
    places = [d for d in differ if (d.prompt, d.load) == (answer.prompt, answer.load)]
    place = f"{places[0].position} ({places[0].kind})" if places else "none"
    tokens = answer.tokens or expected[answer.prompt].tokens
    name = f"{answer.prompt}, {len(answer.asked)} tokens"
    name += f", {CACHED}" if answer.load == CACHED else ""
    return [name, answer.arm, str(answer.output_tokens), place, f"{repetition(tokens):.2f}"]


def repetition(tokens: Sequence[int]) -> float:
    """Return the share of sequences of `GRAM` tokens that occurred before in the answer."""
    grams = [tuple(tokens[i : i + GRAM]) for i in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _shares(equal: Equality) -> Iterator[tuple[Arm, Figure]]:
    for (arm, against), total in equal.compared.items():
        if against == "reference":
            yield arm, share_of(1 - len(equal.of(arm, against)) / total, total)


SCENARIO = Scenario(
    "long",
    "Prompts and answers of hundreds to thousands of tokens, greedy.",
    grade,
    dataset=dataset,
    sampling=sampling,
    as_tokens=True,
    measure=measure,
)
