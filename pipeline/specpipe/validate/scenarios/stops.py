"""Stop words and limits: where an answer must end, with and without speculation.

A stop word is taken from the middle of the answer that the same arm gives without it. The answer
with it must be the text up to that word; some servers include the word.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from specpipe.serve.client import Client, Options
from specpipe.validate.answers import PromptItem, PromptRequest, ask
from specpipe.validate.arms import ServedArm
from specpipe.validate.checks import Check
from specpipe.validate.questions import Questions
from specpipe.validate.scenarios import Grading, Measured, Result, Scenario, Setup, Sheet
from specpipe.validate.trials import Arm

PROMPTS = 4
LETTERS = 3  # of a stop word


@dataclass(frozen=True)
class Stopped:
    """One answer with a stop word or a limit, and the texts that are right."""

    prompt: int
    arm: Arm
    cause: str
    text: str
    right: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the answer is one of the right ones."""
        return self.text in self.right


def why_omitted(setup: Setup) -> str | None:
    """Return why no request can have a stop word."""
    if "stop_words" not in setup.endpoint.text.tensors.options:
        return "this server takes no stop words"
    return None


def measure(client: Client, setup: Setup, arms: Sequence[ServedArm]) -> list[Stopped]:
    """Send each prompt without and with a stop word."""
    found = []
    for number, question in enumerate(setup.questions.asked[:PROMPTS]):
        for arm in arms:
            options = Options(max_tokens=setup.config.validate.max_tokens)
            request = PromptRequest("stops", PromptItem(question), number, arm, "", options)
            found += _with_word(client, request, setup.questions)
    return found


def _with_word(client: Client, request: PromptRequest, questions: Questions) -> list[Stopped]:
    whole = ask(client, request, questions)
    word = middle(whole.text)
    if whole.error is not None or not word:
        return []
    options = replace(request.options, stop_words=(word,))
    cut = ask(client, replace(request, options=options), questions)
    before = whole.text[: whole.text.index(word)]
    right = (before + word, before)
    text = cut.error or cut.text
    return [Stopped(request.prompt, request.arm.arm, f"stop word {word!r}", text, right)]


def middle(text: str) -> str:
    """Return a few letters from the middle of a text; empty if it has none."""
    begin = len(text) // 2
    word = text[begin : begin + LETTERS]
    return word if word.strip() and "\ufffd" not in word else ""


def grade(measured: Measured, grading: Grading) -> Result:
    """Return a check over all answers."""
    found = [one for part in measured.extra for one in part]  # type: ignore[attr-defined]
    wrong = [one for one in found if not one.passed]
    seen = f"{len(wrong)} of {len(found)} answers are wrong"
    if wrong:
        first = wrong[0]
        seen += (
            f", the first: prompt {first.prompt}, {first.arm}, {first.cause}: it ends with "
            f"{first.text[-20:]!r} instead of {first.right[0][-20:]!r}"
        )
    rows = [
        [str(one.prompt), one.arm, one.cause, "passed" if one.passed else "FAILED"] for one in found
    ]
    sheet = Sheet("Stop words", "", ("prompt", "arm", "request", ""), rows)
    check = Check("an answer ends at its stop word", not wrong, seen)
    return Result("stops", sheets=(sheet,), checks=(check,))


SCENARIO = Scenario(
    "stops",
    "Answers with a stop word from the middle of the same answer without it.",
    grade,
    why_omitted=why_omitted,
    measure=measure,
)
