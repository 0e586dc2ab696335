"""Packs a step: roots and drafts of the streams that decode, and chunks of prompts.

A step has at most `max_num_tokens` rows. Half of the rows that the roots leave are reserved for
prompts, if any are being read. If the KV pool is full, the youngest stream gives its rows back. It
resumes when there is room for all of its tokens again.

A step without chunks is padded to the width that the budget wants: one sequence gets draft nodes
whose logits nobody wants.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from specpipe.core.contracts import Draft, Ints, Role, Score
from specpipe.core.engines import Item, LoadedEngine, PoolFull
from specpipe.runtime.budget import Budget
from specpipe.runtime.lane import Lane
from specpipe.runtime.stream import Counts, Stream

LEAST_CHUNK = 2  # rows: a chunk of one row would run in another kernel
CATCH_UP = 8  # a stream with more pending tokens reads them before it drafts
_NOTHING: Ints = np.zeros(0, np.int64)


@dataclass
class Planned:
    """An item of a step and where its answer goes."""

    stream: Stream
    item: Item
    kept: Ints | None = None  # nodes of the draft that are scored; None: all


@dataclass
class Packer:
    """Plans the steps of a batcher."""

    engines: Mapping[Role, LoadedEngine]
    max_num_tokens: int
    budget: Budget
    streams: list[Stream]  # all live ones, the oldest first
    counts: Counts

    def pack(self, role: Role, streams: Sequence[Stream], *, chunks: bool) -> list[Planned]:
        """Return the items of a step: whole ones first, then chunks of prompts."""
        left, reading = self.max_num_tokens, list[Stream]()
        whole = list[Stream]()
        for stream in sorted(streams, key=lambda s: not s.decodes):
            lane = self._follow(role, stream)
            if lane is None:
                continue
            rows = len(lane.pending) + _fixed_nodes(role, stream)
            if len(lane.pending) <= CATCH_UP and rows <= left:
                whole.append(stream)
                left -= rows
            else:
                reading.append(stream)
        held = min(left // 2, sum(len(s.lanes[role].pending) for s in reading)) if chunks else 0
        planned = self._with_drafts(role, whole, left - held)
        left = self.max_num_tokens - sum(len(p.item.tokens) for p in planned)
        for stream in reading if chunks else ():
            more = self._read(role, stream, left)
            if more is not None:
                planned.append(more)
                left -= len(more.item.tokens)
        planned = self._fitting(role, planned)
        return self._padded(planned) if role == "target" else planned

    def _follow(self, role: Role, stream: Stream) -> Lane | None:
        """Bring a lane up to the sequence that its stream names; None if it has to wait."""
        assert isinstance(stream.ask, Score)
        lane = stream.lanes[role]
        opens = lane.cache is None
        lane.follow(stream.ask.tokens)
        if opens and role == "target" and stream.counted:
            self.counts.prefix_queries += len(stream.ask.tokens)
            self.counts.prefix_hits += len(stream.ask.tokens) - len(lane.pending)
        if lane.preempted:
            everything = lane.chunk(len(lane.pending))
            if len(self.streams) > 1 and not self.engines[role].fits([everything]):
                lane.release()
                return None
            lane.preempted = False
        return lane

    def _with_drafts(self, role: Role, streams: list[Stream], room: int) -> list[Planned]:
        """Return whole items; the budget decides which nodes of the target's drafts are scored."""
        asks = [s.ask for s in streams if isinstance(s.ask, Score)]
        kept: list[Ints | None] = [None] * len(asks)
        if role == "target":
            loose = [n for n, ask in enumerate(asks) if not ask.whole and len(ask.draft)]
            paths = {n: self._possible(asks[n].draft) for n in loose}
            chosen = self.budget.choose(
                [_only(asks[n].draft, paths[n]) for n in loose],
                [streams[n].forecast for n in loose],
                streams=len(streams),
                roots=sum(len(s.lanes[role].pending) for s in streams),
                room=room,
            )
            for n, nodes in zip(loose, chosen, strict=True):
                kept[n] = _among(paths[n], nodes)
        return [
            Planned(s, s.lanes[role].whole(_only(ask.draft, nodes)), nodes)
            for s, ask, nodes in zip(streams, asks, kept, strict=True)
        ]

    def _possible(self, draft: Draft) -> Ints | None:
        """Return the nodes of a draft that the target may score; None: all."""
        return draft.main_path() if self.engines["target"].facts.chains_only else None

    def _read(self, role: Role, stream: Stream, left: int) -> Planned | None:
        """Return the next part of a prompt: all that is left of it, or a chunk."""
        ask, lane = stream.ask, stream.lanes[role]
        assert isinstance(ask, Score)
        nodes = self._possible(ask.draft) if role == "target" and not ask.whole else None
        draft = _only(ask.draft, nodes)
        if len(lane.pending) + len(draft) <= left:
            return Planned(stream, lane.whole(draft), nodes)
        if not ask.whole and len(lane.pending) <= left:
            drawn = draft.probs is not None
            nodes = np.arange(left - len(lane.pending)) if drawn else _NOTHING
            return Planned(stream, lane.whole(_only(draft, nodes)), nodes)
        count = min(left, len(lane.pending) - 1)
        return Planned(stream, lane.chunk(count)) if count >= LEAST_CHUNK else None

    def _fitting(self, role: Role, planned: list[Planned]) -> list[Planned]:
        """Preempt the youngest streams until the items fit into the pool."""
        engine = self.engines[role]
        while planned and not engine.fits([p.item for p in planned]):
            holders = [s for s in self.streams if s.lanes[role].holds_rows]
            youngest = holders[-1] if holders else planned[-1].stream
            if len(holders) < 2 and len(planned) == 1:
                raise PoolFull("one sequence by itself does not fit into the KV cache")
            self._preempt(role, youngest)
            planned = [p for p in planned if p.stream is not youngest]
        return planned

    def _padded(self, planned: list[Planned]) -> list[Planned]:
        """Fill a step of the target up to the budget's width, where there is room."""
        more = self.budget.width - sum(len(p.item.tokens) for p in planned)
        engine = self.engines["target"]
        if more <= 0 or engine.facts.chains_only or not all(len(p.item.wanted) for p in planned):
            return planned
        shortest = min(planned, key=_end)
        filled = replace(shortest, item=_filled(shortest.item, more))
        result = [filled if plan is shortest else plan for plan in planned]
        fits = _end(filled) <= engine.facts.max_seq_len and engine.fits([p.item for p in result])
        return result if fits else planned

    def _preempt(self, role: Role, stream: Stream) -> None:
        self.counts.preemptions += stream.counted
        stream.lanes[role].preempted = True
        stream.lanes[role].release()


def _end(plan: Planned) -> int:
    """Return the rows of a sequence after a step."""
    return len(plan.item.cache.tokens) + len(plan.item.tokens)


def _filled(item: Item, more: int) -> Item:
    """Return an item with more rows at its end, which nobody wants: the last token again."""
    count = len(item.tokens)
    after = np.arange(count - 1, count - 1 + more)
    parents = None if item.parents is None else np.concatenate([item.parents, after])
    tokens = np.concatenate([item.tokens, item.tokens[-1:].repeat(more)])
    return Item(item.cache, tokens, parents, item.wanted)


def _fixed_nodes(role: Role, stream: Stream) -> int:
    """Count the draft nodes that the budget may not cut."""
    assert isinstance(stream.ask, Score)
    return len(stream.ask.draft) if stream.ask.whole or role != "target" else 0


def _among(nodes: Ints | None, chosen: Ints | None) -> Ints | None:
    """Return the chosen ones of `nodes`; None stands for all."""
    if nodes is None or chosen is None:
        return nodes if chosen is None else chosen
    return nodes[chosen]


def _only(draft: Draft, nodes: Ints | None) -> Draft:
    return draft if nodes is None else draft.only(nodes)
