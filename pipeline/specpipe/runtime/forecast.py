"""What the budget knows of the streams of a round: their acceptance, and prices."""

from collections.abc import Sequence
from dataclasses import dataclass

from specpipe.core.contracts import Floats
from specpipe.runtime.acceptance import DEPTHS, AcceptanceEstimate, Shadow


@dataclass(eq=False)
class Forecast:
    """What the budget knows of one stream."""

    adaptive: bool
    max_concurrency: int | None
    own: AcceptanceEstimate
    limit: int = 0  # depth of the deepest draft that the stream would make
    allowed: int = 0  # depth of the next draft
    idle_steps: int = 0  # since a draft was scored or tried
    trying: bool = False  # whether the next draft is tried although it does not seem to pay
    expected: float | None = None  # of the draft that is being scored, by its own probabilities
    shadow: Shadow | None = None


@dataclass
class Round:
    """The streams of a round, and its prices."""

    forecasts: Sequence[Forecast]
    running: int
    token_ms: float  # of plain decoding
    row_ms: float  # of one more row, at least
    depth: int | None = None  # of the drafts that pay; None: not computed yet

    def lets_draft(self, forecast: Forecast) -> bool:
        """Whether a stream's settings let it draft."""
        most = forecast.max_concurrency
        return most is None or self.running <= most

    def gains(self, forecast: Forecast) -> Floats:
        """Return the milliseconds that each level of a stream's draft saves, at best."""
        survival = forecast.own.survival(min(forecast.limit, DEPTHS))
        return survival * self.token_ms - self.row_ms
