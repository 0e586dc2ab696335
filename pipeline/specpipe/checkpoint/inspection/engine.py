"""TensorRT-LLM engines: config.json with `pretrained_config` and `build_config`, rankN.engine.

The rules are those of the builder (tensorrt_llm/builder.py) and of the runtime that loads engines
(gptJsonConfig.cpp, trtGptModelInflightBatching.cpp). The plans themselves are opaque.
"""

from collections.abc import Iterator
from pathlib import Path

from specpipe.checkpoint.inspection.config import REDRAFTERS, Json, table, text, whole
from specpipe.checkpoint.inspection.records import (
    EngineLimits,
    File,
    InspectionFinding,
    Ranks,
    Speculation,
)
from specpipe.core.errors import first_few
from specpipe.core.upstream import MODE_NUMBERS

_BEAMS = "explicit_draft_tokens"  # ReDrafter's mode
_BUILD = "build the engine again"


def mode(build: Json) -> str | None:
    """Return upstream's name of the speculative decoding mode; None if it is not legible."""
    value = build.get("speculative_decoding_mode", 1)
    if isinstance(value, str):
        return value.lower().removeprefix("speculativedecodingmode.")
    names = {number: name for name, number in MODE_NUMBERS.items()}
    return names.get(value) if isinstance(value, int) else None


def describe_limits(build: Json) -> EngineLimits:
    """Return what the engine was built for."""
    paged = table(build, "plugin_config").get("use_paged_context_fmha")
    return EngineLimits(
        max_batch_size=whole(build, "max_batch_size"),
        max_input_len=whole(build, "max_input_len"),
        max_seq_len=whole(build, "max_seq_len"),
        max_num_tokens=whole(build, "max_num_tokens"),
        max_beam_width=whole(build, "max_beam_width"),
        kv_cache_type=text(build, "kv_cache_type"),
        paged_context_fmha=paged if isinstance(paged, bool) else None,
    )


def engine_files(folder: Path, ranks: Ranks) -> tuple[list[File], list[InspectionFinding]]:
    """Return the engines of all ranks, and what is wrong with them as files."""
    paths = [folder / f"rank{index}.engine" for index in range(ranks.count)]
    files = [File(path.name, path.stat().st_size) for path in paths if path.is_file()]
    missing = [path.name for path in paths if not path.is_file()]
    found = [InspectionFinding(f"{file.name} is empty", _BUILD) for file in files if not file.size]
    if missing:
        sentence = f"{first_few(missing)}: not there, but mapping has {ranks.count} ranks"
        found.append(InspectionFinding(sentence, _BUILD))
    return files, found


def check_engine(raw: Json, speculation: Speculation) -> Iterator[InspectionFinding]:
    """Yield every reason why the runtime would refuse the engine, or serve it badly."""
    build, limits = table(raw, "build_config"), describe_limits(table(raw, "build_config"))
    name = speculation.mode
    if name is None:
        yield InspectionFinding(
            f"build_config: 'speculative_decoding_mode' is "
            f"{build.get('speculative_decoding_mode')!r}",
            _BUILD,
        )
        return
    yield from _check_mode(table(raw, "pretrained_config"), build, speculation)
    if name == "none":
        return
    if limits.max_beam_width not in (1, None):
        yield InspectionFinding(
            f"max_beam_width is {limits.max_beam_width}: there is no speculation with beams",
            "build with --max_beam_width 1",
        )
    if limits.kv_cache_type not in ("PAGED", "paged", None):
        yield InspectionFinding(
            f"the KV cache is {limits.kv_cache_type}: {name} needs a paged one",
            "build with --kv_cache_type paged",
        )
    yield from _check_room(limits, build, name)
    yield from _check_reuse(limits, build, name)


def _check_mode(
    pretrained: Json, build: Json, speculation: Speculation
) -> Iterator[InspectionFinding]:
    name, architecture = speculation.mode, pretrained.get("architecture")
    wanted = {"MedusaForCausalLM": "medusa", "EagleForCausalLM": "eagle",
              **dict.fromkeys(REDRAFTERS, _BEAMS)}.get(str(architecture))  # fmt: skip
    if wanted is not None and name != wanted:
        yield InspectionFinding(
            f"{architecture} was built in the mode {name}: its drafts are computed and never used",
            f"build with --speculative_decoding_mode {wanted}",
        )
    if name in ("medusa", "eagle", _BEAMS) and name != wanted:
        yield InspectionFinding(
            f"the mode is {name}, but {architecture} has nothing to draft with", "use its own mode"
        )
    length, fixed = whole(build, "max_draft_len"), _fixed_length(pretrained, speculation)
    if name != "none" and not length:
        yield InspectionFinding(
            f"{name} was built without room for drafts", "build with --max_draft_len"
        )
    if fixed is not None and length is not None and fixed != length:
        yield InspectionFinding(
            f"max_draft_len is {length} in build_config and {fixed} by pretrained_config", _BUILD
        )


def _fixed_length(pretrained: Json, speculation: Speculation) -> int | None:
    """Return the drafted tokens that the model itself fixes; None if the build may choose."""
    beams, tokens = speculation.redrafter_num_beams, speculation.redrafter_draft_len_per_beam
    return beams * tokens if beams and tokens else whole(pretrained, "max_draft_len")


def _check_room(limits: EngineLimits, build: Json, name: str) -> Iterator[InspectionFinding]:
    length, batch = whole(build, "max_draft_len"), limits.max_batch_size
    if length is None or batch is None or limits.max_num_tokens is None:
        return
    needed = batch * (length + 1)
    if limits.max_num_tokens < needed:
        yield InspectionFinding(
            f"max_num_tokens is {limits.max_num_tokens}, but {batch} sequences of {length} drafted "
            f"tokens take {needed} a step",
            "build with a larger --max_num_tokens or a smaller --max_batch_size",
        )


def _check_reuse(limits: EngineLimits, build: Json, name: str) -> Iterator[InspectionFinding]:
    """A target of external drafts sends its prefix again and relies on the reuse of KV blocks."""
    if name not in ("draft_tokens_external", "eagle"):
        return
    if limits.paged_context_fmha is False:
        yield InspectionFinding(
            f"{name} needs paged context attention", "build with --use_paged_context_fmha enable"
        )
    if name == "draft_tokens_external" and build.get("gather_context_logits"):
        yield InspectionFinding(
            "gather_context_logits switches the reuse of KV blocks off, without which the target "
            "of a draft model is not loaded",
            "build without --gather_context_logits",
        )
