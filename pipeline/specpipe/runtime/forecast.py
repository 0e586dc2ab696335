"""What the budget knows of the streams of a round: their acceptance, and prices."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from specpipe.core.contracts import Floats
from specpipe.runtime.acceptance import DEPTHS, AcceptanceEstimate, Shadow

PATIENCE = 10  # rounds without drafts for each with drafts, until a disappointment is forgotten
MOST_PATIENCE = 40  # after disappointments in a row
MOST_DRAFTED = 125  # rounds with drafts that count for it
SUCCESS = 500  # rounds with drafts that would not have been made if they had disappointed


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
class Realised:
    """How fast rounds were compared with what was predicted, without drafts and with.

    Predictions err: a draft is cut to its likeliest nodes, streams that share a step are slower
    than its rows, and Python takes time. What errs alike in both kinds of rounds is left out.
    """

    plain: float = 1.0
    drafting: float = 1.0
    drafted: int = 0  # rounds with drafts
    waited: int = 0  # rounds without
    patience: int = PATIENCE

    @property
    def share(self) -> float:
        """The speed of rounds with drafts by the prediction, if that of plain ones is right."""
        return self.drafting / self.plain

    def note(self, drafts: bool, speed: float, rate: float) -> None:
        """Take note of the speed of a round, by its prediction.

        A disappointment is forgotten after PATIENCE times as many rounds without drafts as it took,
        so that drafts are tried again. The next one in a row is remembered twice as long.
        """
        if drafts:
            self.drafting += rate * (speed - self.drafting)
            self.drafted, self.waited = self.drafted + 1, 0
            if self.drafted == SUCCESS:
                self.patience = PATIENCE
            return
        self.plain += rate * (speed - self.plain)
        self.waited += 1
        if self.waited >= self.patience * min(self.drafted, MOST_DRAFTED):
            if self.drafting < self.plain:
                self.patience = min(2 * self.patience, MOST_PATIENCE)
            self.drafting = max(self.drafting, self.plain)
            self.drafted = self.waited = 0


@dataclass
class Round:
    """The streams of one round or more, and what pays for them."""

    forecasts: Sequence[Forecast]
    running: int
    count: int = 1  # rounds
    depth: int | None = None  # of the drafts that pay; None: not computed yet
    levels: dict[Forecast, int] = field(default_factory=dict)  # of each stream's draft that may pay
    speeds: Floats | None = None  # [1 + DEPTHS]  tokens per ms that are predicted, by depth

    def lets_draft(self, forecast: Forecast) -> bool:
        """Whether a stream's settings let it draft."""
        most = forecast.max_concurrency
        return most is None or self.running <= most

    def worth_of_levels(self, token_ms: float, row_ms: float) -> Floats:
        """Return how many tokens each level of the streams' drafts gives, [streams, DEPTHS].

        0 where these tokens would take less time without a draft, or beyond a stream's limit.
        `token_ms` is that of plain decoding, `row_ms` that of one more row, at least.
        Takes note of `levels`, which do not depend on limits.
        """
        drafting = [f for f in self.forecasts if self.lets_draft(f)]
        known = np.array([f.own.by_depth for f in drafting]).reshape(-1, DEPTHS)
        survival = np.cumprod(known, axis=1)
        pays = survival * token_ms >= row_ms
        self.levels = dict(zip(drafting, pays.sum(1).tolist(), strict=True))
        limits = np.array([[f.limit] for f in drafting]).reshape(-1, 1)
        return np.where(pays & (np.arange(DEPTHS) < limits), survival, 0.0)
