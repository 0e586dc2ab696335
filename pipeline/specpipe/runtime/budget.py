"""One budget of rows for a step: the draft nodes of all streams compete for them.

A node is worth the probability that it is accepted. A step over B roots and some nodes emits B + W
tokens, where W is the total worth, and costs C(rows) milliseconds (`runtime.cost`), and more if its
width differs from that of the step before. The budget
scores the nodes with which tokens per millisecond are highest. So drafts shrink as load grows, and
speculation ends where plain decoding is faster.

The rule reads committed tokens, acceptance so far, and what drafts were chosen with certainty. It
never reads a token that was drawn: dropping a draft token because of its value would bias sampled
output. Drafts that were drawn lose their last nodes only, and as many as if they had the length
that was allowed: where a drawn draft ends early, its tokens decided it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from specpipe.contracts import ROOT, Draft, Floats, Ints
from specpipe.runtime.cost import StepCost, flat
from specpipe.speculate.decode import Step

DEPTHS = 32  # depths with a probability of their own
FIRST_GUESS = 0.6  # acceptance of a draft token before any was seen
RATE = 0.1  # weight of one step of a stream
PROBE_AFTER = 48  # steps without a draft, after which one is tried again
PROBE_NODES = 3
_NONE: Ints = np.zeros(0, np.int64)
_SIZES: Ints = np.array([0, 1, 2, 3, 4, 8])  # of drafts that are tried for the price of a row


@dataclass
class Acceptance:
    """Estimates the acceptance of draft tokens by depth, and how far drafters overrate theirs."""

    by_depth: Floats = field(default_factory=lambda: np.full(DEPTHS, FIRST_GUESS))
    expected: float = 1.0  # tokens, by the drafters' own probabilities; decays
    accepted: float = 1.0  # of those

    def learn(self, drafted: int, accepted: int, rate: float) -> None:
        """Take note of one step: the first rejected depth was tested too."""
        hits = min(accepted, DEPTHS)
        self.by_depth[:hits] += rate * (1 - self.by_depth[:hits])
        if accepted < min(drafted, DEPTHS):
            self.by_depth[accepted] *= 1 - rate

    def survival(self, depth: int) -> Floats:
        """Return the probability that a path stands down to each of `depth` depths."""
        known = self.by_depth[:depth]
        rest = np.full(max(0, depth - DEPTHS), known[-1] if len(known) else 0.0)
        return np.cumprod(np.concatenate([known, rest]))

    @property
    def honesty(self) -> float:
        """Return the factor from a drafter's own probabilities to those that were observed."""
        return min(2.0, max(0.05, self.accepted / self.expected))

    def calibrate(self, expected: float, accepted: int) -> None:
        """Take note of a step whose draft came with probabilities."""
        self.expected += RATE * (expected - self.expected)
        self.accepted += RATE * (accepted - self.accepted)


@dataclass(eq=False)
class Forecast:
    """What the budget knows of one stream."""

    adaptive: bool
    max_concurrency: int | None
    own: Acceptance
    allowed: int = 0  # depth of the next draft
    idle_steps: int = 0  # since a draft was scored
    expected: float | None = None  # of the draft that is being scored, by its own probabilities

    @property
    def probes(self) -> bool:
        """Whether a draft is tried although it does not seem to pay."""
        return self.idle_steps >= PROBE_AFTER


@dataclass
class Budget:
    """See the module."""

    cost: StepCost = field(default_factory=flat)
    all: Acceptance = field(default_factory=Acceptance)  # of all streams: where new ones start
    drafting_ms: float = 0.0  # of the drafters' engines, per stream and step
    kept_nodes: int = 0
    cut_nodes: int = 0

    def forecast(self, adaptive: bool, max_concurrency: int | None) -> Forecast:
        """Return the forecast of a new stream."""
        known = self.all
        own = Acceptance(known.by_depth.copy(), known.expected, known.accepted)
        return Forecast(adaptive, max_concurrency, own)

    def allow(self, forecast: Forecast, limit: int, running: int) -> int:
        """Return how deep a stream may draft while `running` streams share a step."""
        forecast.allowed = self._allowed(forecast, limit, running)
        return forecast.allowed

    def _allowed(self, forecast: Forecast, limit: int, running: int) -> int:
        most = forecast.max_concurrency
        if most is not None and running > most:
            return 0
        if not forecast.adaptive or forecast.probes:
            return limit
        survival = forecast.own.survival(min(limit, DEPTHS))
        token_ms, row_ms = self._prices(running)
        depth = int(np.count_nonzero(survival * token_ms >= row_ms))
        gain_ms = float(survival[:depth].sum()) * token_ms
        if depth == 0 or gain_ms < self.drafting_ms + row_ms:
            forecast.idle_steps += 1
            return 0
        return limit if depth == len(survival) else depth

    def _prices(self, running: int) -> tuple[float, float]:
        """Return the milliseconds of a token of plain decoding, and of one more row at least."""
        step, *longer = self.cost(running + _SIZES).tolist()
        rows = zip(longer, _SIZES[1:].tolist(), strict=True)
        return step / running, min((ms - step) / more for ms, more in rows)

    def choose(
        self,
        drafts: Sequence[Draft],
        forecasts: Sequence[Forecast],
        *,
        streams: int,
        roots: int,
        room: int,
    ) -> list[Ints | None]:
        """Return the nodes of each draft to score, at most `room` in all; None: all of them.

        `streams` sequences share the step, with `roots` rows without the drafts.
        """
        worth = [self._worth(draft, f) for draft, f in zip(drafts, forecasts, strict=True)]
        found = self._best(drafts, forecasts, worth, streams=streams, roots=roots, room=room)
        chosen = [nodes[nodes < len(draft)] for draft, nodes in zip(drafts, found, strict=True)]
        for draft, forecast, value, nodes in zip(drafts, forecasts, worth, chosen, strict=True):
            forecast.idle_steps = 0 if len(nodes) else forecast.idle_steps + 1
            own = draft.chances is not None
            forecast.expected = (
                float(value[nodes].sum()) / forecast.own.honesty if own and len(nodes) else None
            )
            self.kept_nodes += len(nodes)
            self.cut_nodes += len(draft) - len(nodes)
        pairs = zip(drafts, chosen, strict=True)
        return [None if len(nodes) == len(draft) else nodes for draft, nodes in pairs]

    def _worth(self, draft: Draft, forecast: Forecast) -> Floats:
        """Return the probability that each node is accepted; 0 for scratch nodes."""
        if draft.chances is not None:
            return np.minimum(1.0, forecast.own.honesty * draft.chances)
        if draft.probs is not None:  # drawn: as if it had the allowed length
            return forecast.own.survival(max(forecast.allowed, len(draft)))
        real = len(draft) - draft.scratch
        worth = _survival(draft.parents[:real], forecast.own.by_depth)
        return np.concatenate([worth, np.zeros(draft.scratch)])

    def _best(
        self,
        drafts: Sequence[Draft],
        forecasts: Sequence[Forecast],
        worth: Sequence[Floats],
        *,
        streams: int,
        roots: int,
        room: int,
    ) -> list[Ints]:
        chosen: list[Ints] = [_NONE for _ in drafts]
        gained, rows = float(streams), roots
        for n, draft in enumerate(drafts):  # those that are scored whole, or not at all
            if draft.scratch or not forecasts[n].adaptive:
                size, more = len(draft), float(worth[n].sum())
                ms, longer_ms = self.cost.next(np.array([rows, rows + size]))
                pays = (gained + more) * ms >= gained * longer_ms
                if size <= room and (pays or forecasts[n].probes or not forecasts[n].adaptive):
                    chosen[n] = np.arange(size)
                    gained, rows, room = gained + more, rows + size, room - size
        loose = [n for n, d in enumerate(drafts) if not d.scratch and forecasts[n].adaptive]
        if not loose or room <= 0:
            return chosen
        owner = np.concatenate([np.full(len(worth[n]), n) for n in loose])
        node = np.concatenate([np.arange(len(worth[n])) for n in loose])
        value = np.concatenate([worth[n] for n in loose])
        order = np.argsort(-value, kind="stable")[:room]  # a parent is worth no less than its child
        sizes = np.arange(len(order) + 1)
        tokens = gained + np.concatenate([[0.0], np.cumsum(value[order])])
        rates = tokens / self.cost.next(rows + sizes)
        best = order[: int(np.argmax(rates))]
        for n in loose:
            mine = np.sort(node[best[owner[best] == n]])
            probed = min(PROBE_NODES, len(worth[n]), room) if forecasts[n].probes else 0
            chosen[n] = mine if len(mine) >= probed else np.arange(probed)
        return chosen

    def learn(self, forecast: Forecast, step: Step) -> None:
        """Take note of what a step accepted."""
        if not step.drafted:
            return
        forecast.own.learn(step.drafted, step.accepted, RATE)
        self.all.learn(step.drafted, step.accepted, RATE / 10)
        if forecast.expected is not None:
            forecast.own.calibrate(forecast.expected, step.accepted)
            self.all.calibrate(forecast.expected, step.accepted)
            forecast.expected = None

    def note_step(self, rows: int, ms: float) -> None:
        """Take note of the time of a step of the target."""
        self.cost.observe(rows, ms)

    def note_drafting(self, ms: float) -> None:
        """Take note of the time that the drafters' engines took, per stream."""
        self.drafting_ms += RATE * (ms - self.drafting_ms)


def _survival(parents: Ints, by_depth: Floats) -> Floats:
    """Return the probability that each node is accepted; siblings share that of their depth."""
    siblings = np.bincount(parents + 1, minlength=len(parents) + 1)
    depths, worth = np.zeros(len(parents), np.int64), np.ones(len(parents))
    for node, parent in enumerate(parents.tolist()):
        if parent != ROOT:
            depths[node], worth[node] = depths[parent] + 1, worth[parent]
        worth[node] *= by_depth[min(depths[node], DEPTHS - 1)] / siblings[parent + 1]
    return worth
