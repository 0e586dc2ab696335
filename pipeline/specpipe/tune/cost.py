"""The prices of a step and of its drafts: measured here, or read from a file."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from specpipe.core.contracts import (
    EMPTY,
    ROOT,
    Asking,
    Draft,
    Logits,
    Predict,
    extend,
    guess,
    predict,
    score,
)
from specpipe.core.errors import ConfigError
from specpipe.plan.roofline_file import KIND, Rooflines, read_rooflines
from specpipe.runtime.assembly import Runtime
from specpipe.runtime.cost import StepCost
from specpipe.tune.rounds import RIGHT, Drafting, Samples, Size, time_rounds
from specpipe.tune.trace import DrafterKind, Trace

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # and the widest that there can be
TREES = (3, 7, 15, 31)  # draft tokens of the trees that are timed
TURNS = 4
TOKEN = 7  # any one will do
MOST_ROWS = 65  # root and the widest tree that is tried


@dataclass(frozen=True)
class CostCurve:
    """Milliseconds of a step by its rows; between the measured points it is a line."""

    rows: tuple[int, ...]
    ms: tuple[float, ...]

    def __call__(self, rows: float) -> float:
        """Return the milliseconds of a step over `rows` rows; see `StepCost`."""
        below = int(rows)
        ms, next_ms = self._steps(np.array([below, below + 1])).tolist()
        return float(ms + (rows - below) * (next_ms - ms))

    def measured(self, change_ms: float = 0.0) -> StepCost:
        """Return the curve as serving uses it, for a budget that may correct it."""
        return StepCost(np.array(self.rows, np.float64), np.array(self.ms, np.float64), change_ms)

    @cached_property
    def _steps(self) -> StepCost:
        return self.measured()

    def break_even_batch(self, rows: float, tokens: float, most: int = 256) -> int:
        """Return the largest batch at which steps of `rows` rows and `tokens` tokens are faster.

        For engines that score a batch in one step: b sequences cost T(b * rows) with speculation,
        and T(b) without. 0: speculation is not faster even at batch 1.
        """
        pays = [b for b in range(1, most + 1) if tokens * self(b) > self(b * rows)]
        return max(pays, default=0)


@dataclass(frozen=True)
class Costs:
    """The times of the parts of a step on one machine, in milliseconds."""

    step: CostCurve  # of the target
    heads_ms: float = 0.0  # the heads, once; a drafter, one level
    draft_ms: float = 0.0  # one token of the draft model
    handover_ms: float = 0.0  # between two engines, a step that drafts with the draft model
    estimated: bool = False  # computed from data sheets, not measured
    change_ms: float = 0.0  # more, for a step of other rows than the one before
    tree: CostCurve | None = None  # of steps whose drafts branch; None: as other steps

    def step_ms(self, rows: float, *, changed: bool = False, branched: bool = False) -> float:
        """Return the price of a step of the target, the server's work for it included."""
        curve = self.tree if branched and self.tree else self.step
        return curve(rows) + (self.change_ms if changed else 0.0)

    def drafting_ms(self, head_calls: int, draft_calls: int) -> float:
        """Return the price of the drafters' calls in one step."""
        handover_ms = self.handover_ms if draft_calls else 0.0
        return head_calls * self.heads_ms + draft_calls * self.draft_ms + handover_ms


def read_costs(path: Path) -> Costs | Rooflines:
    """Read step times, measured elsewhere, or the GPUs to compute them for, from a JSON file.

    `{"step_ms": {"1": 14.0, "8": 14.6, "64": 21.0}, "heads_ms": 0.4, "draft_ms": 3.1}`; the rows
    must rise. `estimated`, `source` and `conditions` tell where they come from. `pads_steps` and
    `change_ms`, which older files have, are read and have no effect. `{"kind": "roofline"}` is a
    file of GPUs (`plan.roofline_file`). Raises ConfigError if it is anything else.
    """
    try:
        raw = json.loads(_text(path))
        if isinstance(raw, dict) and raw.get("kind") == KIND:
            return read_rooflines(raw, str(path))
        return _costs(raw)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: not a cost model: {error}",
            hint='e.g. {"step_ms": {"1": 14.0, "8": 14.6}, "heads_ms": 0.4, "draft_ms": 3.1}',
        ) from error


def _costs(raw: dict[str, Any]) -> Costs:
    points = sorted((int(rows), _ms(ms)) for rows, ms in raw.pop("step_ms").items())
    curve = CostCurve(tuple(n for n, _ in points), tuple(ms for _, ms in points))
    if len(points) < 2 or points[0][0] != 1 or min(curve.ms) <= 0:
        raise ValueError("step_ms needs two points or more, from 1 row on, all above 0")
    _ms(raw.pop("change_ms", 0.0))
    estimated = raw.pop("estimated", False)
    flags = (raw.pop("pads_steps", False), estimated)
    if not all(isinstance(flag, bool) for flag in flags) or raw.keys() - {*_PARTS, *_ORIGIN}:
        raise ValueError(
            f"in addition to step_ms it may have {', '.join((*_PARTS, *_ORIGIN))}, estimated "
            "(true or false), and pads_steps"
        )
    heads, draft, handover = (_ms(raw.get(name, 0.0)) for name in _PARTS)
    return Costs(curve, heads, draft, handover, estimated)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}", hint="give --cost-model a JSON file"
        ) from error


_PARTS = ("heads_ms", "draft_ms", "handover_ms")
_ORIGIN = ("source", "conditions")  # for people


def _ms(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is not a number of milliseconds")
    if not 0 <= value < math.inf:
        raise ValueError(f"{value} ms cannot be")
    return float(value)


def measure_costs(
    deployment: Runtime,
    traces: Sequence[Trace],
    *,
    drafter: DrafterKind | None,
    beams: int = 1,
    streams: int = 1,
) -> Costs:
    """Time rounds of serving with recorded answers; see `tune.rounds`.

    `streams` sequences share every call. A drafter continues `beams` paths.
    """
    chains, trees = _sizes(deployment, traces, streams)
    found = time_rounds(deployment, traces, [*chains, *trees], streams=streams, turns=TURNS)
    step = _curve(found, chains, streams)
    tree = _curve(found, [chains[0], *trees], streams) if trees else None
    heads_ms, draft_ms, handover_ms = _drafting_ms(
        deployment, traces, drafter, beams, streams, chains
    )
    return Costs(step, heads_ms, draft_ms, handover_ms, change_ms=_change_ms(found), tree=tree)


def _sizes(
    deployment: Runtime, traces: Sequence[Trace], streams: int
) -> tuple[list[Size], list[Size]]:
    """Return the sizes of rounds to time, chains and trees, for which there is room."""
    longest = deployment.facts["target"].max_seq_len
    room = longest - max(len(trace.prompt) for trace in traces) - 2 * (1 + RIGHT)
    rows = min(deployment.max_num_tokens, MOST_ROWS * min(2, streams)) // streams
    nodes = [n - 1 for n in (*ROWS, MOST_ROWS) if n == 1 or n <= min(rows, room)]
    return [Size(n) for n in nodes], [Size(n, branched=True) for n in nodes if n in TREES]


def _curve(found: Mapping[Size, Samples], sizes: Sequence[Size], streams: int) -> CostCurve:
    """Return the medians by rows. A wider step is never taken for cheaper than a narrower one."""
    ms = [found[size].median for size in sizes]
    return CostCurve(tuple(streams * (1 + size.nodes) for size in sizes), rising(ms))


def _change_ms(found: Mapping[Size, Samples]) -> float:
    """Return by how much the first round of another size is slower, in the median of the sizes."""
    more = [
        statistics.median(samples.changed) - statistics.median(samples.same)
        for samples in found.values()
        if samples.changed and samples.same
    ]
    return max(0.0, statistics.median(more)) if more else 0.0


def _drafting_ms(
    deployment: Runtime,
    traces: Sequence[Trace],
    drafter: DrafterKind | None,
    beams: int,
    streams: int,
    chains: Sequence[Size],
) -> tuple[float, float, float]:
    """Return the prices of a call of the drafter, of one of the draft model, and of its first."""
    nodes = chains[min(3, len(chains) - 1)].nodes
    none, one, four = (Size(nodes, calls=calls) for calls in (0, 1, 4))

    def medians(drafting: Drafting, *sizes: Size) -> list[float]:
        found = time_rounds(
            deployment, traces, sizes, streams=streams, turns=2 * TURNS, drafting=drafting
        )
        return [found[size].median for size in sizes]

    heads_ms = draft_ms = handover_ms = 0.0
    if drafter:
        calls = one if drafter == "heads" else four
        base, with_calls = medians(drafter_calls(drafter, beams), none, calls)
        heads_ms = max(0.0, (with_calls - base) / calls.calls)
    if "draft" in deployment.engines:
        base, once, often = medians(draft_calls, none, one, four)
        draft_ms = max(0.0, (often - once) / (four.calls - one.calls))
        handover_ms = max(0.0, once - base - draft_ms)
    return heads_ms, draft_ms, handover_ms


def drafter_calls(drafter: DrafterKind, beams: int) -> Drafting:
    """Return how a drafter of the target is called in a round: once, or once a level."""
    calls: dict[DrafterKind, Drafting] = {
        "heads": _guess,
        "redrafter": partial(_extend, beams),
        "eagle3": partial(_predict, beams),
    }
    return calls[drafter]


def _guess(tokens: Sequence[int], hidden: Logits, calls: int) -> Asking[None]:
    for _ in range(calls):
        yield from guess("target", hidden)


def _extend(beams: int, tokens: Sequence[int], hidden: Logits, calls: int) -> Asking[None]:
    states = np.zeros((beams, len(hidden)), np.float32)
    for _ in range(calls):
        yield from extend("target", hidden, states, np.zeros(beams, np.int64))


def _predict(beams: int, tokens: Sequence[int], hidden: Logits, calls: int) -> Asking[None]:
    """Ask what follows the root, and then `beams` nodes below it."""
    found = yield from predict(Predict("target", tokens, EMPTY, [], np.array([ROOT])))
    if not len(found.states):
        return
    nodes = np.arange(beams)
    level = Draft(np.full(beams, TOKEN), np.full(beams, ROOT))
    for _ in range(calls - 1):
        yield from predict(Predict("target", tokens, level, [found.states[0]] * beams, nodes))


def draft_calls(tokens: Sequence[int], hidden: Logits, calls: int) -> Asking[None]:
    """Call the draft model as a chain of draft tokens does."""
    for number in range(calls):
        yield from score("draft", [*tokens, *(TOKEN,) * number])


def rising(values: Sequence[float]) -> tuple[float, ...]:
    """Return the nearest values, by least squares, that never fall (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []  # mean, how many
    for value in values:
        mean, count = value, 1
        while blocks and blocks[-1][0] > mean:
            last, more = blocks.pop()
            mean = (mean * count + last * more) / (count + more)
            count += more
        blocks.append((mean, count))
    return tuple(mean for mean, count in blocks for _ in range(count))
