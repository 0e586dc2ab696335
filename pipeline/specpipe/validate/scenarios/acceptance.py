"""Acceptance of draft tokens by depth, by length of the prompt and by dataset."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from specpipe.config.files import require_file
from specpipe.core.conversation import Conversation
from specpipe.core.errors import ConfigError
from specpipe.core.prompts import read_prompts
from specpipe.plan.gates import speculates
from specpipe.serve.client import Client, Options
from specpipe.validate.answers import Answer, PromptItem, PromptRequest, ask, good
from specpipe.validate.arms import ServedArm
from specpipe.validate.checks import Check
from specpipe.validate.depths import Depth, by_depth
from specpipe.validate.measure import decodes_alike
from specpipe.validate.questions import Question
from specpipe.validate.scenarios import Grading, Measured, Result, Scenario, Setup, Sheet

PLAIN_PROMPTS = 2
BUCKETS = (32, 128, 512, 2048)  # tokens of a prompt
HEAD = ("steps", "tokens/step", "joint by depth", "conditional by depth")


def dataset(setup: Setup) -> Sequence[PromptItem]:
    """Return the prompts of the run, prompts that repeat themselves, and `validate.datasets`."""
    own = [PromptItem(question) for question in setup.questions.asked]
    found = [*own, *_items(setup, "repetitive", [f"Repeat word for word: {t} {t}" for t in _few()])]
    for name in setup.config.validate.datasets:
        file = require_file(name, setup.config, "validate.datasets")
        found += _items(setup, Path(name).stem, read_prompts(file))
    return found


def _few() -> list[str]:
    return [text for text in read_prompts(None) if len(text) < 400][:6]


def _items(setup: Setup, name: str, texts: Sequence[str]) -> list[PromptItem]:
    """Return the prompts that the engine takes, at most as many as the run has."""
    engine, tokenizer = setup.config.engine, setup.questions.tokenizer
    room = min(engine.max_input_len, engine.max_seq_len - setup.config.validate.max_tokens)
    found = []
    for text in texts[: setup.config.validate.num_prompts]:
        prompt = text if tokenizer.template is None else Conversation.of(text)
        try:
            question = Question(prompt, tuple(tokenizer.encode_prompt(prompt, room)))
        except ConfigError:  # too long
            continue
        found.append(PromptItem(question, name))
    return found


def why_omitted(setup: Setup) -> str | None:
    """Return why steps cannot be seen."""
    tokens = setup.endpoint.tokens
    if not speculates(setup.config):
        return "the run does not speculate"
    if tokens is None or not tokens.decoupled or not decodes_alike(tokens, "speculative"):
        return "this server has no model that shows the tokens of every speculative step"
    return None


def measure(client: Client, setup: Setup, arms: Sequence[ServedArm]) -> list[Answer]:
    """Send a few prompts without speculation, whose steps must have one token each."""
    tokens = client.endpoint.tokens
    if tokens is None or tokens.draft_limit is None:
        return []
    options = Options(max_tokens=setup.config.validate.max_tokens)
    requests = [
        PromptRequest("acceptance", PromptItem(q), n, ServedArm("plain", 0), "", options, True)
        for n, q in enumerate(setup.questions.asked[:PLAIN_PROMPTS])
    ]
    return [ask(client, request, setup.questions) for request in requests]


def grade(measured: Measured, grading: Grading) -> Result:
    """Return the acceptance by depth of all answers, by length of the prompt and by dataset."""
    answers = list(good(measured.answers))
    parts: dict[str, list[Answer]] = {"all": answers}
    parts |= _grouped(answers, lambda a: f"prompts of {bucket(len(a.asked))}")
    parts |= _grouped(answers, lambda a: f"dataset {a.dataset}")
    rows = [[name, *_row(found)] for name, found in parts.items()]
    note = (
        "A joint share is of all steps, a conditional one of the steps that accepted all tokens "
        "before. Steps with shorter drafts count as not accepted."
    )
    depths = {name: depths_of(found) for name, found in parts.items()}
    sheet = Sheet("Acceptance by depth", note, ("", *HEAD), rows)
    plain = [answer for part in measured.extra for answer in part]  # type: ignore[attr-defined]
    return Result(
        "acceptance", sheets=(sheet,), depths=depths, checks=list(_checks(answers, plain))
    )


def _checks(answers: Sequence[Answer], plain: Sequence[Answer]) -> Iterator[Check]:
    """Compare the counters that the server reports with the steps of the stream.

    The last step of an answer may end before the target's own token, so the two may differ by one.
    """
    reported = [a for a in answers if a.draft_tokens]
    wrong = [a for a in reported if not 0 <= a.accepted_draft_tokens - _accepted(a) <= 1]
    seen = f"{len(wrong)} of {len(reported)} answers differ"
    if wrong:
        first = wrong[0]
        seen += (
            f", the first: prompt {first.prompt} reports {first.accepted_draft_tokens} and its "
            f"steps have {_accepted(first)}"
        )
    yield Check("accepted draft tokens are those of the steps", not wrong, seen)
    several = [a for a in plain if max(a.piece_tokens, default=0) > 1]
    name = "plain decoding sends one token a step"
    yield Check(name, not several, f"{len(several)} of {len(plain)} answers have longer steps")


def _accepted(answer: Answer) -> int:
    return sum(count - 1 for count in answer.piece_tokens)


def _grouped(answers: Sequence[Answer], key: Callable[[Answer], str]) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        found[key(answer)].append(answer)
    return dict(sorted(found.items()))


def bucket(length: int) -> str:
    """Return the range of lengths that a prompt belongs to."""
    low = 0
    for high in BUCKETS:
        if length <= high:
            return f"{low + 1:>4} to {high} tokens"
        low = high
    return f"more than {low} tokens"


def depths_of(answers: Sequence[Answer]) -> list[Depth]:
    """Return the acceptance at every depth that a step has reached."""
    return by_depth(count for answer in answers for count in answer.piece_tokens)


def _row(answers: Sequence[Answer]) -> list[str]:
    counts = [count for answer in answers for count in answer.piece_tokens]
    depths = depths_of(answers)
    shares = [
        ", ".join(f"{getattr(d, name):.0%}" for d in depths) for name in ("joint", "conditional")
    ]
    return [str(len(counts)), f"{sum(counts) / max(1, len(counts)):.2f}", *shares]


SCENARIO = Scenario(
    "acceptance",
    "Which draft tokens are accepted, by depth, by length of the prompt and by dataset.",
    grade,
    dataset=dataset,
    speculation=("speculative",),
    as_tokens=True,
    why_omitted=why_omitted,
    measure=measure,
)
