"""A forecast as lines for people and as values for programs."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from specpipe.train.forecast.amounts import Amounts
from specpipe.train.forecast.fitting import GIB
from specpipe.train.forecast.forecast import TrainingForecast
from specpipe.train.forecast.times import Durations

_SHOWN = 0.05  # GiB and share of the time below which a part is not listed


def lines(found: TrainingForecast) -> Iterator[str]:
    """Yield the forecast line by line; the reasons of a refusal come last."""
    yield _line("text", _text(found.amounts))
    yield from (_line("note", remark) for remark in found.amounts.remarks)
    needs, room = found.needs, found.room
    yield _line("disk", _bytes(needs.disk, needs.disk_bytes, room.disk, "free"))
    phase = needs.largest_phase
    parts = {**needs.weights, phase: needs.phases[phase]}
    if room.gpu_name:
        yield _line("GPU memory", _bytes(parts, needs.device_bytes, room.gpu, room.gpu_name))
        yield _line("RAM", _bytes(needs.host, needs.host_bytes, room.ram, "of this machine"))
    else:
        yield _line("RAM", _bytes(parts, needs.device_bytes, room.ram, "of this machine"))
    yield _line("time", _time(found))
    yield from (_line("refused", str(reason)) for reason in found.rejections)


def forecast_json(found: TrainingForecast) -> dict[str, Any]:
    """Return the forecast as values that JSON has; sizes in bytes, times in seconds."""
    needs, times = found.needs, found.times
    return {
        "kind": found.kind,
        "target": found.target,
        "text": asdict(found.amounts),
        "room": asdict(found.room),
        "disk": dict(needs.disk),
        "weights": dict(needs.weights),
        "phases": dict(needs.phases),
        "host": dict(needs.host) if found.room.gpu_name else {},
        "needed": {"disk": needs.disk_bytes, "device": needs.device_bytes},
        "steps": times.steps if times else None,
        "seconds": dict(times.parts) if times else None,
        "pace": asdict(times.pace) if times else None,
        "not_measured": found.not_measured,
        "rejections": [asdict(reason) for reason in found.rejections],
    }


def _line(name: str, text: str) -> str:
    return f"{name:<11} {text}"


def _text(amounts: Amounts) -> str:
    most = "" if amounts.is_exact else "at most "
    whole = f"{most}{amounts.positions:,} positions, {amounts.tokens:,} tokens in "
    whole += f"{amounts.documents:,} documents"
    if not amounts.prompts:
        return whole
    made = f", of which it invents {amounts.invented:,}" if amounts.invented else ""
    return f"{whole}; the target answers {amounts.prompts:,} prompts{made}"


def _bytes(parts: Mapping[str, int], total: int, there: int | None, where: str) -> str:
    listed = sorted(parts.items(), key=lambda part: -part[1])
    shown = [f"{name} {size / GIB:.1f}" for name, size in listed if size >= _SHOWN * GIB]
    room = "" if there is None else f" ({there / GIB:.1f} GiB {where})"
    return f"{total / GIB:.1f} GiB{room}" + (f": {', '.join(shown)}" if shown else "")


def _time(found: TrainingForecast) -> str:
    times = found.times
    if times is None:
        return f"not measured: {found.not_measured}"
    parts = [
        f"{name} {spelled(seconds)}"
        for name, seconds in times.parts.items()
        if seconds >= _SHOWN * times.total or name == "training"
    ]
    return f"about {spelled(times.total)} for {times.steps:,} steps: {', '.join(parts)}; " + _how(
        times, found.not_measured
    )


def _how(times: Durations, not_measured: str) -> str:
    measured = times.pace.measured
    return f"not measured: {not_measured}" if measured is None else (
        f"measured here for {measured:.0f} s"
    )  # fmt: skip


def spelled(seconds: float) -> str:
    """Return a duration for people: `40 s`, `12 min`, `3 h 20 min`, `2 days 4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"
