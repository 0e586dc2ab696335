"""Counts the steps of one answer by how many of their draft tokens were accepted."""

from collections import Counter
from dataclasses import dataclass, field

from specpipe.runtime.exchange import Counters


@dataclass
class AcceptanceHistogram:
    """How many steps accepted 0, 1, ... draft tokens; steps without a draft do not count.

    An engine that reports several steps at once, or its acceptance at the end only, makes it
    unknown for the rest of the answer.
    """

    known: bool = True
    _steps: Counter[int] = field(default_factory=Counter)
    _drafted: int = 0  # until now
    _accepted: int = 0

    def add(self, emitted: int, engine: Counters, used: Counters) -> None:
        """Count what may be one step of `emitted` tokens.

        `engine` and `used` are the counts so far: those of the engine, and of what was emitted, see
        `Counters.cut`. A step emits the accepted tokens and one more, unless it is the last.
        """
        drafted = engine.draft_tokens - self._drafted
        accepted = engine.accepted_draft_tokens - self._accepted
        self._drafted, self._accepted = engine.draft_tokens, engine.accepted_draft_tokens
        self.known = self.known and accepted <= emitted <= accepted + 1
        if drafted > 0:
            self._steps[accepted - (engine.accepted_draft_tokens - used.accepted_draft_tokens)] += 1

    def row(self) -> list[int]:
        """Return the numbers of steps that accepted 0, 1, ... tokens: at least one number."""
        return [self._steps[count] for count in range(max(self._steps, default=0) + 1)]
