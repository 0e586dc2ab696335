"""What validation measured: every prompt through every arm, the raw material of all metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Arm = Literal["reference", "plain", "speculative"]
ARMS: tuple[Arm, ...] = ("reference", "plain", "speculative")


@dataclass(frozen=True)
class Trial:
    """One prompt through one arm, once."""

    prompt: int  # its number
    arm: Arm
    tokens: tuple[int, ...]
    first_s: float  # to the first token
    total_s: float  # to the last
    step_tokens: tuple[int, ...] = ()  # tokens of every step; empty for the reference
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0


@dataclass(frozen=True)
class Divergence:
    """Where an arm's tokens part from the reference's."""

    prompt: int
    arm: Arm
    position: int  # in the output, from 0
    expected: int | None  # None: the reference had ended
    got: int | None  # None: the arm had ended
    margin: float | None  # by how much the reference preferred its token to the runner-up


@dataclass(frozen=True)
class Reading:
    """How one model reads a prompt and the reference's answer, each token with all before it."""

    prompt: int
    arm: Arm  # the served arms share one engine: plain stands for both
    log_likelihoods: tuple[float, ...]  # of every token but the first
    chosen: tuple[bool, ...]  # of every token of the answer: whether it is the likeliest


@dataclass(frozen=True)
class Trials:
    """All trials of a run, and what was found in them."""

    trials: tuple[Trial, ...]
    divergences: tuple[Divergence, ...]
    readings: tuple[Reading, ...] = ()  # none where the engine cannot be driven from here

    def read_by(self, arm: Arm) -> list[Reading]:
        """Return how the model behind an arm reads; nothing for an arm without trials."""
        reader: Arm = "reference" if arm == "reference" else "plain"
        return [r for r in self.readings if r.arm == reader] if self.of(arm) else []

    def of(self, arm: Arm) -> list[Trial]:
        """Return the trials of one arm, in order."""
        return [trial for trial in self.trials if trial.arm == arm]


def find_divergence(
    prompt: int, arm: Arm, expected: Sequence[int], got: Sequence[int], margins: Sequence[float]
) -> Divergence | None:
    """Return the first position at which two token sequences differ, or None."""
    for position in range(max(len(expected), len(got))):
        theirs = expected[position] if position < len(expected) else None
        ours = got[position] if position < len(got) else None
        if theirs != ours:
            margin = margins[position] if position < len(margins) else None
            return Divergence(prompt, arm, position, theirs, ours, margin)
    return None
