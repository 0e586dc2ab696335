"""Checks that the figures depend on; they apply with any gates."""

from collections.abc import Sequence
from dataclasses import dataclass

from specpipe.validate.trials import Trial, Trials


@dataclass(frozen=True)
class Check:
    """One check and its result."""

    name: str
    passed: bool
    seen: str

    def __str__(self) -> str:
        return f"{self.name}: {self.seen}"


def check_plain_arm(trials: Trials, *, reports: bool) -> list[Check]:
    """Check that the plain arm did not speculate; returns nothing if there is no plain arm.

    `reports` tells whether the server reports draft tokens.
    """
    plain = trials.of("plain")
    if not plain or not trials.of("speculative"):
        return []
    name = "plain decoding does not speculate"
    if not reports:
        return [Check(name, True, "not known: the server does not report draft tokens")]
    drafted = sum(trial.draft_tokens for trial in plain)
    return [Check(name, drafted == 0, f"{drafted} draft tokens")]


def check_front(model: str, text: str, answers: Sequence[Trial]) -> Check:
    """Check that another text model gives the same answer as the measured one."""
    same = any(text == trial.text for trial in answers)
    return Check(
        f"{model} gives the same answer to prompt {answers[0].prompt} as the measured model",
        same,
        "same text" if same else f"{text[:40]!r} instead of {answers[0].text[:40]!r}",
    )
