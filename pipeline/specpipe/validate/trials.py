"""The measurements of a validation: every prompt through every arm, for all metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from specpipe.validate.metrics import Figure

Arm = Literal["reference", "plain", "speculative"]
ARMS: tuple[Arm, ...] = ("reference", "plain", "speculative")
T = TypeVar("T")
EXCERPT = 24  # characters of an answer that a divergence shows


@dataclass(frozen=True)
class Trial:
    """One prompt through one arm, once, as its users see it."""

    prompt: int  # its number
    arm: Arm
    text: str
    output_tokens: int
    first_s: float  # to the first response
    total_s: float  # to the last
    first_tokens: int = 1  # that the first response carries
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    counted: bool = True  # False: the server does not report `output_tokens`; they are estimated


@dataclass(frozen=True)
class Decoding:
    """The tokens of one prompt through one arm, from the model that takes tokens."""

    prompt: int
    arm: Arm
    tokens: tuple[int, ...]
    step_tokens: tuple[int, ...] = ()  # tokens of every step; empty where steps cannot be seen
    accepted_draft_tokens: int = 0


@dataclass(frozen=True)
class ExpectedAnswer:
    """What the reference answers to one prompt, and how sure it was at every token."""

    text: str
    tokens: tuple[int, ...]
    margins: tuple[float, ...]  # logit of the chosen token minus that of the runner-up
    ended: bool = False  # by an end token, which some servers count and others do not

    def agrees(self, trial: Trial) -> bool:
        """Tell whether an answer is this one, as far as its text and its length show."""
        counts = {len(self.tokens), len(self.tokens) - self.ended}
        return trial.text == self.text and (not trial.counted or trial.output_tokens in counts)


@dataclass(frozen=True)
class Divergence:
    """Where an arm's answer diverges from the reference's."""

    prompt: int
    arm: Arm
    position: int | None = None  # in the output tokens, from 0; None: only the text is known
    expected: int | None = None  # None: the reference had ended
    got: int | None = None  # None: the arm had ended
    margin: float | None = None  # logit margin of the reference over the runner-up
    expected_text: str = ""  # from where the texts diverge
    got_text: str = ""
    early: bool = False  # the answer is a beginning of the reference's


@dataclass(frozen=True)
class Likelihoods:
    """How one model reads a prompt and the reference's answer, each token with all before it."""

    prompt: int
    arm: Arm
    log_likelihoods: tuple[float, ...]  # of every token but the first
    chosen: tuple[bool, ...]  # of every token of the answer: whether it is the likeliest


@dataclass(frozen=True)
class Trials:
    """All trials of a run, and what was found in them."""

    trials: tuple[Trial, ...]
    divergences: tuple[Divergence, ...]
    readings: tuple[Likelihoods, ...] = ()
    decodings: tuple[Decoding, ...] = ()
    omitted: Mapping[str, str] = field(default_factory=dict)  # metric -> why it was not measured
    scenario_figures: "Mapping[str, Mapping[Arm, Figure]]" = field(default_factory=dict)

    def read_by(self, arm: Arm) -> list[Likelihoods]:
        """Return how the model of an arm reads."""
        return [reading for reading in self.readings if reading.arm == arm]

    def of(self, arm: Arm) -> list[Trial]:
        """Return the trials of one arm, in order."""
        return [trial for trial in self.trials if trial.arm == arm]


def find_divergence(
    expected: ExpectedAnswer, trials: Sequence[Trial], decoding: Decoding | None
) -> Divergence | None:
    """Return where an arm's answers to one prompt diverge from the expected one; None: nowhere.

    `trials` are its answers in text, at least one; `decoding` is the one in tokens, if known.
    """
    wrong = next((trial for trial in trials if not expected.agrees(trial)), None)
    place = None if decoding is None else first_difference(expected.tokens, decoding.tokens)
    if wrong is None and place is None:
        return None
    theirs, ours = expected.text, (wrong or trials[0]).text
    at = first_difference(theirs, ours)
    at = len(theirs) if at is None else at
    shorter = wrong is not None and wrong.output_tokens < len(expected.tokens)
    found = Divergence(
        trials[0].prompt,
        trials[0].arm,
        expected_text=theirs[at : at + EXCERPT],
        got_text=ours[at : at + EXCERPT],
        early=theirs.startswith(ours) and (ours != theirs or shorter),
    )
    if decoding is None or place is None:
        return found
    return replace(
        found,
        position=place,
        expected=_at(expected.tokens, place),
        got=_at(decoding.tokens, place),
        margin=_at(expected.margins, place),
        early=found.early or place == len(decoding.tokens),
    )


def _at(values: Sequence[T], place: int) -> T | None:
    return values[place] if place < len(values) else None


def first_difference(left: Sequence[object], right: Sequence[object]) -> int | None:
    """Return the first place where two sequences differ; None if they are equal."""
    if left == right:
        return None
    pairs = zip(left, right, strict=False)
    shorter = min(len(left), len(right))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
