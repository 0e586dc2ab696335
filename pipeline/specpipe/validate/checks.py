"""What must hold for the figures to mean what they are called, whatever gates a config has."""

from collections.abc import Sequence
from dataclasses import dataclass

from specpipe.validate.trials import Trial, Trials


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and what was seen."""

    name: str
    passed: bool
    seen: str

    def __str__(self) -> str:
        return f"{self.name}: {self.seen}"


def check_plain_arm(trials: Trials, *, reports: bool) -> list[Check]:
    """Check that the arm called plain did not speculate; nothing if there is no such arm.

    `reports` tells whether the server reports draft tokens at all.
    """
    plain = trials.of("plain")
    if not plain or not trials.of("speculative"):
        return []
    name = "the plain arm decodes without speculation"
    if not reports:
        return [Check(name, True, "not known, the server does not report draft tokens")]
    drafted = sum(trial.draft_tokens for trial in plain)
    return [Check(name, drafted == 0, f"it drafted {drafted} tokens")]


def check_front(model: str, text: str, answers: Sequence[Trial]) -> Check:
    """Check that another model that users call answers as the one that was measured."""
    same = any(text == trial.text for trial in answers)
    return Check(
        f"{model} gives the measured model's answer to prompt {answers[0].prompt}",
        same,
        "the same text" if same else f"{text[:40]!r} instead of {answers[0].text[:40]!r}",
    )
