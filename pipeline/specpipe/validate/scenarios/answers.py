"""One request at a time, greedy: answers compared with plain decoding and the reference.

It runs in every validation. `validate.measure` sends its requests, since the arms take turns prompt
by prompt, as the comparison of their times needs.
"""

from collections.abc import Sequence

from specpipe.validate.answers import Answer
from specpipe.validate.differences import HEAD, compare
from specpipe.validate.pairs import pair
from specpipe.validate.questions import Questions
from specpipe.validate.scenarios import Grading, Measured, Result, Scenario, Sheet
from specpipe.validate.trials import Decoding, Trial

CLASSES = "Equality"


def grade(measured: Measured, grading: Grading) -> Result:
    """Classify every difference between the arms, and from the reference."""
    questions = grading.setup.questions
    contrasts = pair(measured.answers, grading.setup.expected)
    found = compare(contrasts, grading.judge, questions.tokenizer, grading.noise)
    sheet = Sheet(CLASSES, note(grading), HEAD, found.rows())
    return Result("answers", sheets=(sheet,), equality=found)


def note(grading: Grading) -> str:
    """Return the sentence that states the limit of near-ties."""
    noise = grading.noise
    if noise.limit is None:
        return (
            "A near-tie is a difference within the noise of the run. No difference was found that "
            "needed it, or the server reports no log probabilities to calibrate it."
        )
    return (
        f"Near-ties have a margin of the reference of at most {noise.limit:.2g} nats: "
        f"{noise.batch:.2g} by another batch shape ({noise.tokens} tokens), "
        f"{noise.precision:.2g} by the distance of the engine from the reference."
    )


def as_answers(
    trials: Sequence[Trial], decodings: Sequence[Decoding], questions: Questions, max_tokens: int
) -> tuple[Answer, ...]:
    """Return the trials of the served arms as answers, with their tokens where they are known."""
    known = {(d.prompt, d.arm): d for d in decodings}
    found = []
    for trial in trials:
        if trial.arm == "reference":
            continue
        decoding = known.get((trial.prompt, trial.arm))
        found.append(
            Answer(
                "answers", "prompts", trial.prompt, trial.arm, "1 client", None, trial.text,
                decoding.tokens if decoding else (), trial.output_tokens,
                questions.asked[trial.prompt].tokens, 0.0, 0, (trial.first_s, trial.total_s),
                decoding.step_tokens if decoding else (), trial.first_tokens,
                trial.draft_tokens, trial.accepted_draft_tokens, max_tokens,
            )
        )  # fmt: skip
    return tuple(found)


SCENARIO = Scenario(
    "answers",
    "Every prompt, one request at a time, greedy.",
    grade,
)
