"""How many tokens per second clients get, as long as all of them have something to do.

When the last request of a closed loop was sent, clients end one by one. With speculation they end
at different times, and without at the same time. A measurement that waits for the last one would
therefore compare two loads. This one ends with the first client that has nothing to do.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

ANSWERS = 4  # of each client, at least: with fewer, much of the time is that of first prompts
SHARES = (1.0, 0.5, 1.5, 0.75, 1.25)  # of a mean length


def varied(tokens: int, count: int) -> list[int]:
    """Return the lengths of `count` answers of `tokens` tokens in the mean.

    With equal lengths, clients without speculation would send their requests at the same time.
    """
    return [max(1, round(tokens * share)) for share in islice(cycle(SHARES), count)]


@dataclass(frozen=True)
class Span:
    """One answer: its tokens, and the seconds from its request to the first and to the last."""

    tokens: int
    first_s: float
    last_s: float

    def tokens_after(self, seconds: float) -> float:
        """Return how many tokens had come; between the first and the last at an even rate."""
        if seconds < self.first_s or not self.tokens:
            return 0.0
        if seconds >= self.last_s:
            return float(self.tokens)
        share = (seconds - self.first_s) / (self.last_s - self.first_s)
        return 1 + (self.tokens - 1) * share


def while_busy(spans: Sequence[Span], clients: int) -> tuple[float, float]:
    """Return tokens and seconds until the first of `clients` has nothing to do.

    `spans` are in the order in which requests were sent. Each client sends its next one as soon as
    its last answer has ended.
    """
    free = [0.0] * min(clients, len(spans))
    began: list[float] = []
    for span in spans:
        began.append(heapq.heappop(free))
        heapq.heappush(free, began[-1] + span.last_s)
    until = free[0] if free else 0.0
    tokens = [span.tokens_after(until - start) for span, start in zip(spans, began, strict=True)]
    return sum(tokens), until
