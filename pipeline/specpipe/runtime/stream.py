"""One live sequence: its algorithm, what it waits for, and its rows in every engine."""

from dataclasses import dataclass

from specpipe.core.contracts import Ask, Role, Score
from specpipe.runtime.forecast import Forecast
from specpipe.runtime.lane import Lane
from specpipe.speculate.decode import Decoding


@dataclass
class Counts:
    """Totals of a batcher since its start. Streams that are not `counted` add nothing."""

    steps: int = 0  # of the target
    rows: int = 0  # in those
    preemptions: int = 0
    prefix_queries: int = 0  # tokens of sequences that the target opened
    prefix_hits: int = 0  # of those, tokens whose rows were known


@dataclass(eq=False)
class Stream:
    """One live sequence."""

    decoding: Decoding
    lanes: dict[Role, Lane]
    forecast: Forecast
    counted: bool = True  # in `Counts`
    ask: Ask | None = None  # what it waits for; None: it continues in the next round
    decodes: bool = False  # whether it has emitted anything

    def close(self) -> None:
        """End the algorithm and give the rows back."""
        self.decoding.close()
        for lane in self.lanes.values():
            lane.release()

    def scores(self, role: Role) -> bool:
        """Tell whether the stream waits for logits of this engine."""
        return isinstance(self.ask, Score) and self.ask.role == role
