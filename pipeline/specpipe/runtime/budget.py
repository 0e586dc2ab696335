"""One budget of rows for a step: the draft nodes of all streams compete for them.

A node is worth the probability that it is accepted. A step over B roots and some nodes emits B + W
tokens, where W is the total worth, and costs C(rows) milliseconds (`runtime.cost`). The budget
scores the nodes with which tokens per millisecond are highest. So drafts shrink as load grows, and
speculation ends where plain decoding is faster.

The calls of a drafter serve all streams of a round. So the budget decides for all of them at what
depth drafts give the most tokens per millisecond, the time of these calls included.

A step of another width than the one before costs more. So the budget stays at a width, and has a
narrower step padded, until one other width would have saved as much time as a change costs (the
rule of renting skis before buying them).

Where drafting does not pay, a draft is made now and then, and compared with what is emitted
(`Shadow`). Drafts that were drawn, or that need scratch nodes, are scored instead.

The rule reads committed tokens, acceptance so far, and what drafts were chosen with certainty. It
never reads a token that was drawn: dropping a draft token because of its value would bias sampled
output. Drafts that were drawn lose their last nodes only, and as many as if they had the length
that was allowed: where a drawn draft ends early, its tokens decided it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np

from specpipe.core.contracts import ROOT, Draft, Floats, Ints
from specpipe.runtime.acceptance import DEPTHS, RATE, AcceptanceEstimate, Shadow
from specpipe.runtime.cost import DraftingCost, StepCost, flat
from specpipe.runtime.forecast import Forecast, Realised, Round
from specpipe.speculate.decode import Step

TRY_AFTER = 16  # steps of a stream without a draft, after which one is tried, at the earliest
TRIAL_SHARE = 0.01  # of the time of all streams, for trials
TRIAL_NODES = 3
MOST_PADDING = 8  # rows
HOLD = 4  # rounds for which a depth is chosen
IDLE_HOLD = 16  # rounds for which it is chosen to draft nothing
STAY = 8  # steps for which streams are expected to draft, or not to, after a change
REALISED_RATE = 0.02  # weight of a round, for its speed by the prediction; half with one stream
MOST_DEBT_MS = -600.0  # of trials
MARGIN = 0.02  # of a step: prices err, so drafters that are not free have to gain more
_NONE: Ints = np.zeros(0, np.int64)
_NO_REGRET: Floats = np.zeros(0)
_DEPTHS: Ints = np.arange(1, DEPTHS + 1)
_SIZES: Ints = np.array([0, 1, 2, 3, 4, 8])  # of drafts that are tried for the price of a row


@dataclass
class Budget:
    """See the module."""

    cost: StepCost = field(default_factory=flat)
    all: AcceptanceEstimate = field(
        default_factory=AcceptanceEstimate
    )  # of all streams: where new ones start
    drafting: DraftingCost = field(default_factory=DraftingCost)
    kept_nodes: int = 0
    cut_nodes: int = 0
    width: int = 0  # rows that the next step is padded to
    trials_ms: float = 0.0  # at most 0: the time of trials that is not yet made up for
    regret_ms: Floats = field(default_factory=lambda: _NO_REGRET)  # by width: by not having it
    realised: defaultdict[int, Realised] = field(  # by the number of streams
        default_factory=lambda: defaultdict(Realised)
    )
    _round: Round = field(default_factory=lambda: Round((), 1))

    def forecast(self, adaptive: bool, max_concurrency: int | None) -> Forecast:
        """Return the forecast of a new stream."""
        known = self.all
        own = replace(known, by_depth=known.by_depth.copy())
        return Forecast(adaptive, max_concurrency, own)

    def begin(self, forecasts: Sequence[Forecast], running: int) -> None:
        """Begin a round of `running` streams; `forecasts` are those of the ones that decode.

        As long as the streams are the same, a depth holds for some rounds: the choice takes time.
        """
        now = self._round
        hold = HOLD if now.depth else IDLE_HOLD
        if now.count < hold and now.running == running and now.forecasts == forecasts:
            now.count += 1
        else:
            self._round = Round(forecasts, running)

    def allow(self, forecast: Forecast, limit: int) -> int:
        """Return how deep a stream may draft in this round."""
        forecast.limit = limit
        forecast.allowed = self._allowed(forecast, limit)
        return forecast.allowed

    def _allowed(self, forecast: Forecast, limit: int) -> int:
        now = self._round
        if not now.lets_draft(forecast):
            return 0
        if not forecast.adaptive:
            return limit
        forecast.trying = forecast.idle_steps >= TRY_AFTER and self.trials_ms >= 0
        if forecast.trying:
            self.trials_ms -= float(self.drafting(limit))
            return limit
        if now.depth is None:
            now.depth = self._depth_that_pays(now)
        depth = min(now.depth, now.levels.get(forecast, 0), limit)
        if depth == 0:
            forecast.idle_steps += 1
        return limit if depth == min(limit, DEPTHS) else depth

    def _depth_that_pays(self, now: Round) -> int:
        """Return the depth of drafts with which the streams' tokens take least time; 0: none."""
        step_ms, *longer = self.cost(now.running + _SIZES).tolist()
        sizes = zip(longer, _SIZES[1:].tolist(), strict=True)
        row_ms = min((ms - step_ms) / more for ms, more in sizes)
        worth = now.worth_of_levels(step_ms / now.running, row_ms)
        more = np.stack([(worth > 0).sum(0), worth.sum(0)])
        rows, tokens = now.running + np.pad(np.cumsum(more, axis=1), ((0, 0), (1, 0)))
        drafts = int((worth[:, 0] > 0).sum())
        ms, drafting = self.cost(rows.astype(np.int64)), self.drafting(_DEPTHS)
        ms[1:] += drafting + self.cost.drafts_ms(drafts)
        now.speeds = tokens / ms
        ms[1:] += np.minimum(drafting, MARGIN * ms[1:])
        ms[1:] /= self.realised[now.running].share
        if self.cost.last_rows:  # else any step changes the width
            wide = self.cost.last_rows > now.running
            others = slice(0, 1) if wide else slice(1, None)  # that change the width
            ms[others] += self.cost.change_ms / STAY
        return int(np.argmin(ms / tokens))

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
        if not drafts and roots == self.cost.last_rows and not self.regret_ms.any():
            self.width = roots  # as in the rounds of plain decoding: nothing to choose
            return []
        worth = [self._worth(draft, f) for draft, f in zip(drafts, forecasts, strict=True)]
        found = self._best(drafts, forecasts, worth, streams=streams, roots=roots, room=room)
        chosen = [_within(draft, nodes) for draft, nodes in zip(drafts, found, strict=True)]
        for draft, forecast, value, nodes in zip(drafts, forecasts, worth, chosen, strict=True):
            self._note_choice(draft, forecast, value, nodes, roots=roots)
        pairs = zip(drafts, chosen, strict=True)
        return [None if len(nodes) == len(draft) else nodes for draft, nodes in pairs]

    def _note_choice(
        self,
        draft: Draft,
        forecast: Forecast,
        worth: Floats,
        nodes: Ints,
        *,
        roots: int,
    ) -> None:
        """Take note of the nodes of one draft that are scored; others may become a shadow."""
        self.kept_nodes += len(nodes)
        self.cut_nodes += len(draft) - len(nodes)
        if forecast.trying:
            step_ms, longer_ms = self.cost(np.array([roots, roots + len(nodes)])).tolist()
            self.trials_ms -= longer_ms - step_ms
        tried = bool(len(nodes)) or forecast.trying
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
                if size <= room and (pays or forecasts[n].trying or not forecasts[n].adaptive):
                    chosen[n] = np.arange(size)
                    gained, rows, room = gained + more, rows + size, room - size
        loose = [n for n, d in enumerate(drafts) if not d.scratch and forecasts[n].adaptive]
        if not loose or room <= 0:
            self.width = 0
            if streams:
                self._size(rows, np.array([gained]), np.zeros(1))
            return chosen
        sizes = [len(worth[n]) for n in loose]
        begins = list(accumulate(sizes, initial=0))
        owner = np.repeat(np.arange(len(loose)), sizes)
        value = np.concatenate([worth[n] for n in loose])
        order = np.argsort(-value, kind="stable")[:room]  # a parent is worth no less than its child
        tokens = gained + np.concatenate([[0.0], np.cumsum(value[order])])
        count = self._size(rows, tokens, self.cost.drafts_ms(_distinct(owner[order].tolist())))
        scored = np.zeros(len(value), np.bool_)
        scored[order[:count]] = True
        for n, begin, size in zip(loose, begins, sizes, strict=False):
            mine = np.flatnonzero(scored[begin : begin + size])
            drawn = forecasts[n].trying and not _compares(drafts[n])
            tried = min(TRIAL_NODES, size, room) if drawn else 0
            chosen[n] = mine if len(mine) >= tried else np.arange(tried)
        return chosen

    def _size(self, rows: int, tokens: Floats, drafts_ms: Floats) -> int:
        """Return how many nodes are scored, and set the step's width.

        With n of them, a step emits tokens[n] tokens and takes drafts_ms[n] more than its rows.
        """
        scored = np.minimum(np.arange(len(tokens) + MOST_PADDING), len(tokens) - 1)
        widths = rows + np.arange(len(scored))
        ms = self.cost(widths) + drafts_ms[scored]
        place = self._stay_or_change(widths, ms, tokens[scored])
        self.width = int(widths[place])
        return int(scored[place])

    def _stay_or_change(self, widths: Ints, ms: Floats, tokens: Floats) -> int:
        """Return the place of the next width, by what steps of these widths take and emit.

        A change pays where one width would have saved as much as it costs, now or in the rounds
        since the last change. Drafts vary, so the best width of every round is not worth a change.
        """
        best, last = int(np.argmin(ms / tokens)), self.cost.last_rows - int(widths[0])
        if not 0 <= last < len(widths) or not self.cost.change_ms:
            self.regret_ms = _NO_REGRET
            return best
        missing = int(widths[-1]) + 1 - len(self.regret_ms)
        regret = np.pad(self.regret_ms, (0, max(0, missing)))
        saved_ms = ms[last] / tokens[last] * tokens - ms
        regret[widths] = np.maximum(0.0, regret[widths] + saved_ms)
        worst = int(np.argmax(regret[widths]))
        changes = 2 if last == 0 else 1  # a draft has an end
        if regret[widths[worst]] < changes * self.cost.change_ms:
            self.regret_ms = regret
            return last
        self.regret_ms = _NO_REGRET
        return worst

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

    def note_step(self, rows: int, ms: float, drafts: int = 0, *, reads: bool = False) -> None:
        """Take note of the time of a step of the target; see `StepCost.observe`."""
        self.cost.observe(rows, ms, drafts, reads=reads)
        self.afford_trials(ms)

    def afford_trials(self, ms: float) -> None:
        """Give trials their share of some milliseconds that have passed."""
        self.trials_ms = min(0.0, self.trials_ms + TRIAL_SHARE * ms)

    def note_drafting(self, depth: int, calls: int, ms: float) -> None:
        """Take note of what a round took in addition to the target's step.

        `depth` is the deepest draft that was allowed, `calls` are those of drafters. The first
        drafts were allowed before their price was known: trials have to make up for them.
        """
        if depth and not self.drafting.call_ms:
            self._owe(ms)
        self.drafting.observe(depth, calls, ms)

    def note_reading(self, ms: float) -> None:
        """Take note of the time in which a draft model read prompts: trials have to make up for it.

        A draft model reads the prompt of a stream with its first draft.
        """
        self._owe(ms)

    def _owe(self, ms: float) -> None:
        self.trials_ms = max(self.trials_ms - ms, min(self.trials_ms, MOST_DEBT_MS))

    def note_round(self, tokens: int, ms: float) -> None:
        """Take note of what a whole round emitted, and of its time; no stream read its prompt."""
        now = self._round
        if now.speeds is None or now.depth is None or not tokens:
            return
        speed = tokens / max(ms, 1e-3) / float(now.speeds[now.depth])
        rate = min(REALISED_RATE, REALISED_RATE / 2 * now.running)
        self.realised[now.running].note(now.depth > 0, speed, rate)


def _within(draft: Draft, nodes: Ints) -> Ints:
    """Return those of the nodes that the draft has: a drawn one may be shorter than allowed."""
    return nodes if draft.probs is None else nodes[nodes < len(draft)]


def _distinct(owners: Sequence[int]) -> Ints:
    """Return [1 + n]: how many different ones the first 0 to n owners are."""
    seen: set[int] = set()
    counts = [0]
    for owner in owners:
        seen.add(owner)
        counts.append(len(seen))
    return np.array(counts)


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
