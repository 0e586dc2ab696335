"""Convert a plan to text for a screen, and to plain values with every detail."""

import shlex
from collections.abc import Iterator

from specpipe.engine.backend import Command, Footprint
from specpipe.plan.memory import KV_SHARE, Largest, Memory
from specpipe.plan.plan import Download, Plan
from specpipe.plan.roofline import MOST_BATCH, Estimate

_GIB = 2**30
_COLUMN = 13


def plan_text(plan: Plan) -> str:
    """Return a plan for people: obstacles, engines, memory, estimate, commands and notes.

    A refused run gets no estimate and no commands, because it would never run like that.
    """
    sections = [
        list(_obstacles(plan)),
        list(_summary(plan)),
        list(_sizes(plan)),
        *([] if plan.rejections else _steps(plan)),
        list(_verdict(plan)),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _steps(plan: Plan) -> list[list[str]]:
    """Return the sections of a plan that only a run without refusals has."""
    return [
        [line for download in plan.downloads.values() for line in _download(download)],
        list(_speed(plan.estimate, plan)) if plan.estimate else [],
        [line for path, text in plan.files.items() for line in _file(path, text)],
        [line for command in plan.commands for line in _command(command)],
        list(_baseline(plan.baseline)) if plan.baseline else [],
    ]


def _row(name: str, text: str) -> str:
    return f"{name:<{_COLUMN}}{text}"


def _obstacles(plan: Plan) -> Iterator[str]:
    """Yield why `build` would not run, each reason with what to change."""
    found = (("REFUSED", plan.rejections), ("missing on this machine:", plan.gaps))
    for label, reasons in found:
        for reason in reasons:
            yield _row(label, reason.reason) if len(label) < _COLUMN else f"{label} {reason.reason}"
            yield _row("", f"-> {reason.hint}")


def _summary(plan: Plan) -> Iterator[str]:
    config, engine = plan.config, plan.config.engine
    nodes = config.speculation.num_draft_tokens
    lossy = "" if config.lossless else "; LOSSY where tokens are sampled"
    drafts = f", {_plural(nodes, 'draft token')} per step" if nodes else ""
    yield _row("run", f"{config.name}: {config.speculation.method}{drafts}{lossy}")
    versions = ", ".join(f"{k} {v}" for k, v in plan.versions.items() if k != "container")
    yield _row("backend", f"{engine.backend} ({versions})")
    if config.serving.front == "triton" and engine.traits.whole_repository:
        yield _row("front", f"triton, with its {engine.backend} backend, in a container of NVIDIA")
    elif config.serving.front != "triton":
        yield _row("front", f"{config.serving.front}, with an OpenAI API; Triton is not used")
    if plan.versions.get("container"):
        yield _row("container", plan.versions["container"])
    yield _row("hardware", f"{_hardware(plan)}; {_formats(plan)}")
    yield _row(
        "limits",
        f"batch size {engine.max_batch_size}, sequence length {engine.max_seq_len}, "
        f"input length {engine.max_input_len}",
    )
    if engine.traits.own_engine:
        yield _row("batching", _batching(plan))


def _batching(plan: Plan) -> str:
    """Return what the sequences of a batch share."""
    config, engine = plan.config, plan.config.engine
    tokens = engine.kv_cache_tokens or engine.max_batch_size * engine.max_seq_len
    text = f"KV cache for {tokens} tokens, {config.max_num_tokens} rows per step"
    text += ", no prefix cache" * (not engine.prefix_cache)
    return text + ", batch-invariant" * engine.batch_invariant


def _hardware(plan: Plan) -> str:
    engine = plan.config.engine
    if engine.gpu is None:
        return "CPU of this machine" if engine.traits.runs_on_cpus else "GPU not given"
    ranks = engine.tp_size * engine.pp_size
    cut = f", tp {engine.tp_size}, pp {engine.pp_size}" if ranks > 1 else ""
    return f"{ranks} x {engine.gpu}{cut}"


def _formats(plan: Plan) -> str:
    engine = plan.config.engine
    weights, cache = engine.quantization, engine.kv_cache_quantization
    formats: str = engine.dtype
    formats += f", {weights} weights" * (weights != "none")
    return formats + f", {cache} KV cache" * (cache != "none")


def _plural(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _sizes(plan: Plan) -> Iterator[str]:
    """Yield a line for each engine, and the memory that is needed and available."""
    if not plan.models:
        yield _row("memory", "not estimated: a note below has the reason")
        return
    heading = f"{'parameters':>11}{'layers':>8}{'vocabulary':>12}"
    if plan.memory is not None:
        heading += f"{'weights':>10}{'KV cache':>10}{'buffers':>9}{'total':>8}"
    unit = ""
    if plan.memory is not None:
        unit = "  GiB on each GPU" if plan.config.engine.gpu else "  GiB of RAM"
    yield _row("engine", heading + unit)
    for role, model in plan.models.items():
        facts = f"{model.num_parameters / 1e9:>9.2f} B{model.num_hidden_layers:>8}"
        facts += f"{model.vocab_size:>12}"
        yield _row(role, facts + (_cells(plan.memory.footprints[role]) if plan.memory else ""))
    if plan.memory is None:
        yield _row("memory", "not estimated: the memory of the GPU is not known")
    else:
        yield from _room(plan.memory, plan)


def _cells(part: Footprint) -> str:
    cache = part.kv_per_token * part.kv_tokens
    buffers = part.activations + part.runtime
    cells = f"{part.weights / _GIB:>10.1f}{cache / _GIB:>10.1f}{buffers / _GIB:>9.1f}"
    return f"{cells}{part.total / _GIB:>8.1f}"


def _room(memory: Memory, plan: Plan) -> Iterator[str]:
    needed, available = memory.total / _GIB, memory.usable / _GIB
    where = " on each GPU" if plan.config.engine.gpu else " of RAM"
    yield _row(
        "memory",
        f"{needed:.1f} GiB needed, {available:.1f} GiB available{where} (estimate)"
        + ("" if memory.fits else ": does not fit"),
    )
    if memory.largest is not None and memory.largest.batch_size:
        yield _row("maximum", _maximum(memory.largest, plan))
    if memory.kv and memory.fits:
        tokens = next(iter(memory.kv.values())).tokens
        each = " in each engine" if len(memory.kv) > 1 else ""
        yield _row(
            "KV cache",
            f"{tokens} tokens{each}, from {KV_SHARE:.0%} of the memory left after loading",
        )


def _maximum(largest: Largest, plan: Plan) -> str:
    engine = plan.config.engine
    text = f"batch size {largest.batch_size} at {engine.max_seq_len} tokens"
    if largest.seq_len:
        text += f", or batch size {engine.max_batch_size} at {largest.seq_len} tokens"
    return text


def _download(download: Download) -> Iterator[str]:
    """Yield what `build` downloads, and each file with its size."""
    yield _row("download", f"{download.model} at {download.commit}, before it is converted")
    for name, size in download.files.items():
        yield _row("", f"{name:<40} " + ("size not known" if size is None else _size(size)))


def _size(size: int) -> str:
    return f"{size / _GIB:.2f} GiB" if size >= _GIB / 100 else f"{size / 2**20:.2f} MiB"


def _speed(found: Estimate, plan: Plan) -> Iterator[str]:
    """Yield the estimated time of a step (one target forward pass), and the speed-ups."""
    rows = plan.config.speculation.num_draft_tokens + 1
    yield _row(
        "estimate",
        f"roofline from the {plan.config.engine.gpu} data sheet, context length {found.context}; "
        "not measured",
    )
    steps = [f"decode {found.plain_ms:.1f} ms"]
    if rows > 1:
        steps.append(f"verify {rows} tokens {found.verify_ms:.1f} ms")
    if found.draft_ms:
        steps.append(f"draft {found.draft_ms:.1f} ms per token")
        steps.append(f"call overhead {found.handover_ms:.1f} ms")
    if found.heads_ms:
        steps.append(f"draft {found.heads_ms:.1f} ms")
    yield _row("step time", ", ".join(steps))
    if found.cases:
        yield _row("break-even", f"{found.break_even_tokens:.2f} tokens per step at batch size 1")
    width = max((len(case.assumed.label) for case in found.cases), default=0) + 1
    for case in found.cases:
        full = f", {case.speedup_full:.2f}x at batch {found.batch}" if found.batch > 1 else ""
        yield _row(
            "",
            f"{case.assumed.label + ':':<{width}} {case.assumed.tokens:>5.2f} tokens per step, "
            f"{case.speedup:.2f}x at batch 1{full}, {_faster(case.pays)}",
        )


def _faster(batches: tuple[int, int] | None) -> str:
    if batches is None:
        return "never faster"
    first, last = batches
    start = f"from batch {first} to" if first > 1 else "up to batch"
    return f"faster {start} {last}{'+' * (last == MOST_BATCH)}"


def _file(path: str, text: str) -> list[str]:
    return [_row("file", path), *(f"{'':<{_COLUMN}}{line}" for line in text.splitlines())]


def _command(command: Command) -> list[str]:
    """Return a command in shell syntax, with a few flags on each line."""
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
    """Yield the engine of `validate.baseline`, with the memory that it needs when it is served."""
    yield _row(
        "baseline", f"{plan.config.name}: an engine without speculation, for `validate` only"
    )
    yield from _sizes(plan)
    for command in plan.commands:
        yield from _command(command)


def _verdict(plan: Plan) -> Iterator[str]:
    for note in plan.notes:
        yield _row("note", note)
    if plan.rejections or plan.gaps:
        return
    if plan.models:
        yield _row("ok", "`specpipe build` can build this run")
    else:
        yield _row("unknown", "`specpipe build` can build this run; whether it fits is not known")
