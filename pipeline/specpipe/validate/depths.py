"""Acceptance by depth: how often at least d draft tokens of a step are accepted."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Depth:
    """The steps of which a draft token at one depth was accepted."""

    depth: int  # from 1
    steps: int  # all steps
    reached: int  # steps that accepted `depth` - 1 tokens
    accepted: int  # steps that accepted at least `depth` tokens

    @property
    def joint(self) -> float:
        """Share of all steps."""
        return self.accepted / self.steps

    @property
    def conditional(self) -> float:
        """Share of the steps that accepted all tokens before."""
        return self.accepted / self.reached


def by_depth(step_tokens: Iterable[int]) -> list[Depth]:
    """Return the acceptance at every depth that a step has reached.

    `step_tokens` are the tokens of every step, the target's own included. A step whose draft was
    shorter counts as not accepted at the depths beyond.
    """
    accepted = [count - 1 for count in step_tokens if count > 0]
    found = []
    for depth in range(1, max(accepted, default=0) + 2):
        reached = sum(n >= depth - 1 for n in accepted)
        if not reached:
            break
        found.append(Depth(depth, len(accepted), reached, sum(n >= depth for n in accepted)))
    return found
