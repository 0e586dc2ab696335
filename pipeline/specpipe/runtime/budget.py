"""One budget of rows for a step: the draft nodes of all streams compete for them.

A node is worth the probability that it is accepted. A step over B roots and some nodes emits B + W
tokens, where W is the total worth, and costs C(rows) milliseconds (`runtime.cost`). The budget
scores the nodes with which tokens per millisecond are highest. So drafts shrink as load grows, and
speculation ends where plain decoding is faster.

A step of another width than the one before costs more. So the budget stays at a width until that
has lost as much time as a change costs (the rule of renting skis before buying them).

Where drafting does not pay, a draft is made now and then, and compared with what is emitted
(`Shadow`). Drafts that were drawn, or that need scratch nodes, are scored instead.

The rule reads committed tokens, acceptance so far, and what drafts were chosen with certainty. It
never reads a token that was drawn: dropping a draft token because of its value would bias sampled
output. Drafts that were drawn lose their last nodes only, and as many as if they had the length
that was allowed: where a drawn draft ends early, its tokens decided it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from specpipe.core.contracts import ROOT, Draft, Floats, Ints
from specpipe.runtime.acceptance import DEPTHS, RATE, AcceptanceEstimate, Shadow
from specpipe.runtime.cost import StepCost, flat
from specpipe.speculate.decode import Step

PROBE_AFTER = 16  # steps without a draft, after which one is tried again, at the earliest
PROBE_SHARE = 0.01  # of the time: a dear trial is made more seldom
PROBE_NODES = 3
_NONE: Ints = np.zeros(0, np.int64)
_SIZES: Ints = np.array([0, 1, 2, 3, 4, 8])  # of drafts that are tried for the price of a row


@dataclass(eq=False)
class Forecast:
    """What the budget knows of one stream."""

    adaptive: bool
    max_concurrency: int | None
    own: AcceptanceEstimate
    allowed: int = 0  # depth of the next draft
    idle_steps: int = 0  # since a draft was scored or tried
    probe_after: int = PROBE_AFTER  # idle steps
    expected: float | None = None  # of the draft that is being scored, by its own probabilities
    shadow: Shadow | None = None

    @property
    def probes(self) -> bool:
        """Whether a draft is tried although it does not seem to pay."""
        return self.idle_steps >= self.probe_after


@dataclass
class Budget:
    """See the module."""

    cost: StepCost = field(default_factory=flat)
    all: AcceptanceEstimate = field(
        default_factory=AcceptanceEstimate
    )  # of all streams: where new ones start
    drafting_ms: float = 0.0  # of a draft, per stream and step
    kept_nodes: int = 0
    cut_nodes: int = 0
    lost_ms: float = 0.0  # since the last change of width, by not changing it

    def forecast(self, adaptive: bool, max_concurrency: int | None) -> Forecast:
        """Return the forecast of a new stream."""
        known = self.all
        own = replace(known, by_depth=known.by_depth.copy())
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
        gain_ms = float((survival[:depth] * token_ms - row_ms).sum())
        if depth == 0 or gain_ms < self.drafting_ms:
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
            self._note_choice(draft, forecast, value, nodes, streams=streams, roots=roots)
        pairs = zip(drafts, chosen, strict=True)
        return [None if len(nodes) == len(draft) else nodes for draft, nodes in pairs]

    def _note_choice(
        self,
        draft: Draft,
        forecast: Forecast,
        worth: Floats,
        nodes: Ints,
        *,
        streams: int,
        roots: int,
    ) -> None:
        """Take note of the nodes of one draft that are scored; others may become a shadow."""
        self.kept_nodes += len(nodes)
        self.cut_nodes += len(draft) - len(nodes)
        if forecast.probes:
            step_ms, longer_ms = self.cost(np.array([roots, roots + len(nodes)])).tolist()
            spent_ms = streams * (self.drafting_ms + longer_ms - step_ms)
            forecast.probe_after = max(PROBE_AFTER, int(spent_ms / (PROBE_SHARE * step_ms)))
        tried = bool(len(nodes)) or forecast.probes
        forecast.idle_steps = 0 if tried else forecast.idle_steps + 1
        shown = nodes if len(nodes) else np.arange(len(draft))
        own = draft.chances is not None
        expected = float(worth[shown].sum()) / forecast.own.honesty if own else None
        if len(nodes):
            forecast.expected = expected
        elif forecast.shadow is None and _compares(draft):
            forecast.shadow = Shadow(draft, expected)

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
                ms, longer_ms = self.cost(np.array([rows, rows + size])).tolist()
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
        tokens = gained + np.concatenate([[0.0], np.cumsum(value[order])])
        best = order[: self._size(rows, tokens)]
        for n in loose:
            mine = np.sort(node[best[owner[best] == n]])
            drawn = forecasts[n].probes and not _compares(drafts[n])
            probed = min(PROBE_NODES, len(worth[n]), room) if drawn else 0
            chosen[n] = mine if len(mine) >= probed else np.arange(probed)
        return chosen

    def _size(self, rows: int, tokens: Floats) -> int:
        """Return how many nodes are scored; with n of them, a step emits tokens[n] tokens."""
        ms_per_token = self.cost(rows + np.arange(len(tokens))) / tokens
        best, same = int(np.argmin(ms_per_token)), self.cost.last_rows - rows
        if best == same:
            return best
        if 0 <= same < len(tokens):
            self.lost_ms += float(tokens[best] * (ms_per_token[same] - ms_per_token[best]))
            changes = 2 if same == 0 else 1  # a draft has an end
            if self.lost_ms < changes * self.cost.change_ms:
                return same
        self.lost_ms = 0.0
        return best

    def learn(self, forecast: Forecast, step: Step) -> None:
        """Take note of what a step accepted."""
        if step.drafted:
            self._learn(forecast, step.drafted, step.accepted, forecast.expected)
            forecast.expected = None
        shadow = forecast.shadow
        if shadow is not None and shadow.follow(step.tokens):
            self._learn(forecast, shadow.draft.depth, shadow.accepted, shadow.expected)
            forecast.shadow = None

    def _learn(
        self, forecast: Forecast, drafted: int, accepted: int, expected: float | None
    ) -> None:
        for known, rate in ((forecast.own, RATE), (self.all, RATE / 10)):
            known.learn(drafted, accepted, rate)
            if expected is not None:
                known.calibrate(expected, accepted, RATE)

    def note_step(self, rows: int, ms: float) -> None:
        """Take note of the time of a step of the target."""
        self.cost.observe(rows, ms)

    def note_drafting(self, ms: float) -> None:
        """Take note of the time that drafts took, per stream."""
        rate = RATE if self.drafting_ms else 1.0
        self.drafting_ms += rate * (ms - self.drafting_ms)


def _compares(draft: Draft) -> bool:
    """Tell whether a draft is judged by comparison with the emitted tokens, without scratch."""
    return len(draft) > 0 and draft.probs is None and not draft.scratch


def _survival(parents: Ints, by_depth: Floats) -> Floats:
    """Return the probability that each node is accepted; siblings share that of their depth."""
    siblings = np.bincount(parents + 1, minlength=len(parents) + 1)
    depths, worth = np.zeros(len(parents), np.int64), np.ones(len(parents))
    for node, parent in enumerate(parents.tolist()):
        if parent != ROOT:
            depths[node], worth[node] = depths[parent] + 1, worth[parent]
        worth[node] *= by_depth[min(depths[node], DEPTHS - 1)] / siblings[parent + 1]
    return worth
