"""Benchmarks as Markdown tables and as plain values; makes no decisions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specpipe.bench.engine import CHUNKS, SHAPES, EngineRow
from specpipe.bench.front import FrontRow
from specpipe.bench.serving import ServingRow
from specpipe.bench.soak import SoakRow, Usage
from specpipe.bench.speculation import SpeculationRow
from specpipe.bench.tuning import TuningRow
from specpipe.cli.output import plain
from specpipe.cli.present import settings_text
from specpipe.validate.metrics import Figure


@dataclass(frozen=True)
class Table:
    """The columns of a Markdown table, and the lines of one record in it."""

    columns: Sequence[str]
    lines: Callable[[Any], Sequence[Sequence[str]]]

    def head(self) -> str:
        """Return the first two lines."""
        return f"{_line(self.columns)}\n|{'---|' * len(self.columns)}"

    def body(self, row: Any) -> str:
        """Return the lines of one record."""
        return "\n".join(_line(cells) for cells in self.lines(row))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def conditions_text(conditions: Mapping[str, str]) -> str:
    """Return the conditions as a list."""
    return "\n".join(f"- {name}: {value}" for name, value in conditions.items())


def bench_json(conditions: Mapping[str, str], rows: Sequence[object]) -> dict[str, Any]:
    """Return a benchmark as plain values."""
    return {"conditions": dict(conditions), "rows": plain(rows)}


def spread(found: Figure) -> str:
    """Return a median, and the 10th and 90th percentile."""
    return f"{found.median:.3g} [{found.p10:.3g}, {found.p90:.3g}]"


def _speculation(row: SpeculationRow) -> list[list[str]]:
    steps = "-" if row.tokens_per_step is None else f"{row.tokens_per_step:.2f}"
    rates = (row.tokens_per_s, row.plain_tokens_per_s, row.speedup)
    return [
        [
            row.run,
            row.precision,
            row.prompts,
            steps,
            *(spread(rate) for rate in rates),
            f"{row.overall_speedup:.2f}",
            str(row.equal_answers),
            str(row.answers),
        ]
    ]


def _serving(row: ServingRow) -> list[list[str]]:
    sizes = (row.memory_bytes, row.weights_bytes, row.kv_cache_bytes, row.rest_bytes)
    cells = ["-" if size is None else f"{size / 1e6:.0f}" for size in sizes]
    loads: dict[str, list[str]] = {}
    for point in sorted(row.loads, key=lambda p: (p.clients or 0, p.arm)):
        loads.setdefault(point.load, []).append(f"{point.tokens_per_s:.1f}")
    rates = ", ".join(f"{load}: {' / '.join(found)}" for load, found in loads.items()) or "-"
    start = "-" if row.start_s is None else f"{row.start_s.median:.1f}"
    return [[row.run, start, *cells, rates]]


def _front(row: FrontRow) -> list[list[str]]:
    low, high = row.ratio.interval or (row.ratio.p10, row.ratio.p90)
    return [
        [
            row.run,
            row.precision,
            str(row.streams),
            spread(row.grpc_tokens_per_s),
            spread(row.front_tokens_per_s),
            f"{row.ratio.median:.3f} [{low:.3f}, {high:.3f}]",
            f"{100 * (1 - row.ratio.median):+.1f} %",
            f"{row.front_cpu_us:.0f}",
            f"{row.client_cpu_us:+.0f}",
            f"{row.equal_answers} of {row.answers}",
        ]
    ]


def _engine(row: EngineRow) -> list[list[str]]:
    times = ["-" if step.ms is None else f"{step.ms:.1f}" for step in row.steps]
    rates = {rate.chunk: f"{rate.tokens_per_s:.0f}" for rate in row.prefill}
    return [[row.run, row.precision, *times, *(rates.get(size, "-") for size in CHUNKS)]]


def _tuning(row: TuningRow) -> list[list[str]]:
    return [
        [
            row.run,
            settings_text(row.chosen),
            f"{row.tune_s:.0f}",
            f"{settings_text(row.fastest)}, of {row.settings}",
            f"{row.brute_force_s:.0f}",
            spread(row.relative_speed),
        ]
    ]


def _soak(row: SoakRow) -> list[list[str]]:
    return [[row.run, found.kind, found.outcome, str(found.count)] for found in row.outcomes]


def soak_text(row: SoakRow) -> str:
    """Return the processes of one soak test, and whether its server still runs."""
    lines = [
        f"- {found.process}: {_usage(found.before)} -> {_usage(found.after)}; MiB after every "
        f"tenth: {' '.join(f'{mib:.1f}' for mib in found.resident_mib)}"
        for found in row.processes
    ]
    end = f"the server failed: {row.failure}" if row.failure else "the server still runs"
    return "\n".join([*lines, f"\n{row.run}: {end}"])


def _usage(usage: Usage) -> str:
    return f"{usage.resident_mib:.1f} MiB, {usage.threads} threads, {usage.files} files"


SPECULATION = Table(
    (
        "run", "dtype", "prompts", "tokens/step", "tokens/s", "without", "speed-up", "overall",
        "equal", "of",
    ),
    _speculation,
)  # fmt: skip
SERVING = Table(
    (
        "run",
        "start, s",
        "memory, MB",
        "weights, MB",
        "KV cache, MB",
        "rest, MB",
        "tokens/s under load",
    ),
    _serving,
)
FRONT = Table(
    (
        "run", "dtype", "streams", "gRPC, tokens/s", "front, tokens/s", "front / gRPC", "cost",
        "front, CPU us a token", "client, additional CPU us a token", "equal",
    ),
    _front,
)  # fmt: skip
ENGINE = Table(
    (
        "run",
        "dtype",
        *(f"{count} x {rows}, ms" for count, rows in SHAPES),
        *(f"chunks of {size}, tokens/s" for size in CHUNKS),
    ),
    _engine,
)
TUNING = Table(
    ("run", "tune", "s", "brute force", "s", "speed of tune's choice / brute force's"), _tuning
)
SOAK = Table(("run", "requests", "outcome", "count"), _soak)
