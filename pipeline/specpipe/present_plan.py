"""A plan into text at a glance, and into plain values that carry all of it."""

import shlex
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from specpipe.building import Command, Footprint
from specpipe.plan.memory import Memory
from specpipe.plan.plan import Download, Plan
from specpipe.plan.roofline import MOST_BATCH, Estimate

_GIB = 2**30
_COLUMN = 13


def plan_text(plan: Plan) -> str:
    """Return a plan for people: what, on what, does it fit, how fast, how, and why not."""
    sections = [
        list(_summary(plan)),
        list(_sizes(plan)),
        [line for download in plan.downloads.values() for line in _download(download)],
        list(_speed(plan.estimate, plan)) if plan.estimate else [],
        [line for path, text in plan.files.items() for line in _file(path, text)],
        [line for command in plan.commands for line in _command(command)],
        list(_baseline(plan.baseline)) if plan.baseline else [],
        list(_verdict(plan)),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _row(name: str, text: str) -> str:
    return f"{name:<{_COLUMN}}{text}"


def _summary(plan: Plan) -> Iterator[str]:
    config, engine = plan.config, plan.config.engine
    nodes = config.speculation.num_draft_tokens
    lossy = "" if config.lossless else "; LOSSY where tokens are sampled"
    drafts = f", {nodes} draft token{'s' * (nodes > 1)} a step" if nodes else ""
    yield _row("run", f"{config.name}: {config.speculation.method}{drafts}{lossy}")
    versions = ", ".join(f"{k} {v}" for k, v in plan.versions.items() if k != "container")
    yield _row("backend", f"{engine.backend} ({versions})")
    if plan.versions.get("container"):
        yield _row("container", plan.versions["container"])
    formats: str = engine.dtype
    formats += f", {engine.quantization} weights" * (engine.quantization != "none")
    formats += f", {engine.kv_cache_quantization} KV cache" * (
        engine.kv_cache_quantization != "none"
    )
    where = "this machine"
    if engine.gpu is not None:
        ranks = engine.tp_size * engine.pp_size
        cut = f", tp {engine.tp_size}, pp {engine.pp_size}" if ranks > 1 else ""
        where = f"{ranks} x {engine.gpu}{cut}"
    yield _row("on", f"{where}; {formats}")
    yield _row(
        "for",
        f"{_sequences(engine.max_batch_size)} of {engine.max_seq_len} tokens, prompts of up to "
        f"{engine.max_input_len}",
    )


def _sequences(number: int) -> str:
    return f"{number} sequence{'s' * (number != 1)}"


def _sizes(plan: Plan) -> Iterator[str]:
    """Yield a line an engine, and what is left."""
    if not plan.models:
        yield _row("memory", "not estimated: specpipe does not know this architecture")
        return
    heading = f"{'parameters':>11}{'layers':>8}{'vocabulary':>12}"
    if plan.memory is not None:
        heading += f"{'weights':>10}{'KV cache':>10}{'buffers':>9}{'total':>8}"
    unit = ""
    if plan.memory is not None:
        unit = "  GiB on each GPU" if plan.config.engine.gpu else "  GiB"
    yield _row("engine", heading + unit)
    for role, model in plan.models.items():
        facts = f"{model.num_parameters / 1e9:>9.2f} B{model.num_hidden_layers:>8}"
        facts += f"{model.vocab_size:>12}"
        yield _row(role, facts + (_cells(plan.memory.footprints[role]) if plan.memory else ""))
    if plan.memory is None:
        yield _row("memory", "not estimated: no known machine to hold it against")
    else:
        yield from _room(plan.memory, plan)


def _cells(part: Footprint) -> str:
    cache = part.kv_per_token * part.kv_tokens
    buffers = part.activations + part.runtime
    cells = f"{part.weights / _GIB:>10.1f}{cache / _GIB:>10.1f}{buffers / _GIB:>9.1f}"
    return f"{cells}{part.total / _GIB:>8.1f}"


def _room(memory: Memory, plan: Plan) -> Iterator[str]:
    free = memory.usable - memory.total
    state = f"{free / _GIB:.1f} free" if free >= 0 else f"{-free / _GIB:.1f} TOO MUCH"
    yield _row(
        "memory",
        f"{memory.total / _GIB:.1f} of {memory.usable / _GIB:.1f} GiB, {state}; an estimate",
    )
    if memory.largest is not None and memory.largest.batch_size:
        engine = plan.config.engine
        yield _row(
            "room for",
            f"{_sequences(memory.largest.batch_size)} of {engine.max_seq_len} tokens, or "
            f"{engine.max_batch_size} of {memory.largest.seq_len}",
        )
    if memory.kv and memory.fits:
        tokens = next(iter(memory.kv.values())).tokens
        each = " in each engine" if len(memory.kv) > 1 else ""
        yield _row("KV cache", f"{tokens} tokens{each}, with all that is left")


def _download(download: Download) -> Iterator[str]:
    """Yield what `build` fetches, and each file with its size."""
    yield _row("download", f"{download.model} at {download.commit}, before it is converted")
    for name, size in download.files.items():
        yield _row("", f"{name:<40} " + ("size not known" if size is None else _size(size)))


def _size(size: int) -> str:
    return f"{size / _GIB:.2f} GiB" if size >= _GIB / 100 else f"{size / 2**20:.2f} MiB"


def _speed(guess: Estimate, plan: Plan) -> Iterator[str]:
    rows = plan.config.speculation.num_draft_tokens + 1
    yield _row(
        "estimate",
        f"from {plan.config.engine.gpu}'s data sheet, behind {guess.context} tokens; not measured",
    )
    steps = [f"plain {guess.plain_ms:.1f} ms"]
    if rows > 1:
        steps.append(f"{rows} rows {guess.verify_ms:.1f} ms")
    if guess.draft_ms:
        steps.append(f"draft {guess.draft_ms:.1f} ms a token")
        steps.append(f"hand-over {guess.handover_ms:.1f} ms")
    if guess.heads_ms:
        steps.append(f"guessing {guess.heads_ms:.1f} ms")
    yield _row("a step", ", ".join(steps))
    if guess.cases:
        yield _row("pays from", f"{guess.break_even_tokens:.2f} tokens a step, for one sequence")
    for case in guess.cases:
        yield _row(
            "",
            f"{case.assumed.label:<20} {case.assumed.tokens:>5.2f} tokens a step: "
            f"{case.speedup:.2f}x for one, {case.speedup_full:.2f}x for {guess.batch}; "
            f"{_paying(case.pays)}",
        )


def _paying(batches: tuple[int, int] | None) -> str:
    if batches is None:
        return "does not pay"
    first, last = batches
    start = f"from batch {first} " if first > 1 else ""
    return f"pays {start}up to {'batch ' if first == 1 else ''}{last}{'+' * (last == MOST_BATCH)}"


def _file(path: str, text: str) -> list[str]:
    return [_row("file", path), *(f"{'':<{_COLUMN}}{line}" for line in text.splitlines())]


def _command(command: Command) -> list[str]:
    """Return a command as a shell would take it, a few flags a line."""
    name, *words = (shlex.quote(word) for word in command.argv)
    lines, pairs = [_row(command.stage, name)], _pairs(words)
    for pair in pairs:
        if len(lines[-1]) + len(pair) > 96:
            lines[-1] += " \\"
            lines.append(f"{'':<{_COLUMN + 2}}{pair}")
        else:
            lines[-1] += f" {pair}"
    return lines


def _pairs(words: list[str]) -> list[str]:
    """Join each flag with its value."""
    joined: list[str] = []
    for word in words:
        if word.startswith("--") or not joined:
            joined.append(word)
        else:
            joined[-1] += f" {word}"
    return joined


def _baseline(plan: Plan) -> Iterator[str]:
    """Yield what is built for `validate.baseline`, and what it needs when it is served."""
    yield _row("baseline", f"{plan.config.name}: a plain engine, which only `validate` serves")
    yield from _sizes(plan)
    for command in plan.commands:
        yield from _command(command)


def _verdict(plan: Plan) -> Iterator[str]:
    for note in plan.notes:
        yield _row("note", note)
    for rejection in plan.rejections:
        yield _row("REFUSED", rejection.reason)
        yield _row("", f"-> {rejection.hint}")
    for gap in plan.gaps:
        yield _row("not yet", gap.reason)
        yield _row("", f"-> {gap.hint}")
    if not plan.rejections and not plan.gaps:
        yield _row("ok", "`specpipe build` can run this")


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain values; `estimate.costs` is what `tune --cost-model` reads.

    `commands` are all that build would run, those of the baseline too.
    """
    commands = [*plan.commands, *(plan.baseline.commands if plan.baseline else ())]
    return {
        "name": plan.config.name,
        "buildable": not plan.rejections and not plan.gaps,
        "method": plan.config.speculation.method,
        "num_draft_tokens": plan.config.speculation.num_draft_tokens,
        "lossless": plan.config.lossless,
        "backend": plan.config.engine.backend,
        "tp_size": plan.config.engine.tp_size,
        "pp_size": plan.config.engine.pp_size,
        "versions": dict(plan.versions),
        "engines": {role: asdict(request) for role, request in plan.requests.items()},
        "memory": None if plan.memory is None else _memory_json(plan.memory),
        "estimate": None if plan.estimate is None else _estimate_json(plan.estimate),
        "commands": [
            {"stage": c.stage, "argv": list(c.argv), "env": dict(c.env)} for c in commands
        ],
        "baseline": None if plan.baseline is None else plan_json(plan.baseline),
        "files": dict(plan.files),
        "downloads": {role: asdict(download) for role, download in plan.downloads.items()},
        "rejections": [asdict(rejection) for rejection in plan.rejections],
        "not_yet": [asdict(gap) for gap in plan.gaps],
        "notes": list(plan.notes),
    }


def _memory_json(memory: Memory) -> dict[str, Any]:
    return {
        "estimate": True,
        "fits": memory.fits,
        "needed_bytes": dict(memory.needed),
        "available_bytes": memory.available,
        "usable_bytes": memory.usable,
        "parts": {
            role: {**asdict(part), "total": part.total} for role, part in memory.footprints.items()
        },
        "kv_cache": {role: asdict(budget) for role, budget in memory.kv.items()},
        "largest": asdict(memory.largest) if memory.largest else None,
    }


def _estimate_json(guess: Estimate) -> dict[str, Any]:
    return {
        "measured": False,
        "context": guess.context,
        "plain_ms": guess.plain_ms,
        "verify_ms": guess.verify_ms,
        "handover_ms": guess.handover_ms,
        "break_even_tokens": guess.break_even_tokens,
        "cases": [
            {
                "assumed": case.assumed.label,
                "tokens_a_step": case.assumed.tokens,
                "speedup": case.speedup,
                f"speedup_at_batch_{guess.batch}": case.speedup_full,
                "pays_at_batches": case.pays,
            }
            for case in guess.cases
        ],
        "costs": {
            "step_ms": {str(rows): ms for rows, ms in guess.costs.items()},
            "heads_ms": guess.heads_ms,
            "draft_ms": guess.draft_ms,
            "handover_ms": guess.handover_ms,
        },
    }
