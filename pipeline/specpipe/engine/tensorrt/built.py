"""Compares the config.json of a built engine with the plan, before the engine is published."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specpipe.core.errors import StageFailed
from specpipe.core.upstream import MODE_NUMBERS
from specpipe.engine.backend import Command

_EQUAL = ("max_batch_size", "max_beam_width", "max_draft_len")
_PLUGINS = (
    "gpt_attention_plugin",
    "gemm_plugin",
    "context_fmha",
    "use_paged_context_fmha",
    "use_fp8_context_fmha",
    "remove_input_padding",
    "tokens_per_block",
)
_MODEL = (
    "architecture",
    "dtype",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "num_medusa_heads",
    "redrafter_num_beams",
    "redrafter_draft_len_per_beam",
    "redrafter_greedy_search",
    "num_eagle_layers",
    "max_non_leaves_per_layer",
    "max_draft_len",
)


@dataclass(frozen=True)
class FlagDifference:
    """One value that differs from the plan."""

    key: str
    planned: object
    built: object

    def __str__(self) -> str:
        return f"{self.key} is {self.built}, planned was {self.planned}"


def require_as_planned(command: Command, checkpoint: Path, engine: Path, release: str) -> None:
    """Raise StageFailed with every difference if an engine differs from its plan.

    `checkpoint` is the folder that `command` compiled; `release` is the planned release.
    """
    built = _read(engine / "config.json")
    source = _read(checkpoint / "config.json")
    found = [*compare(command.options(), source, built, release), *_missing_ranks(built, engine)]
    if found:
        listed = "\n".join(f"  - {difference}" for difference in found)
        raise StageFailed(
            f"compile: trtllm-build succeeded, but the engine differs from the plan:\n{listed}",
            hint="build in the planned container (--in-container); this engine was not published",
        )


def compare(
    flags: Mapping[str, str], checkpoint: Mapping[str, Any], built: Mapping[str, Any], release: str
) -> list[FlagDifference]:
    """Return the differences of a built config.json from its flags, checkpoint and release."""
    found = [FlagDifference("version", release, built.get("version"))]
    model = built.get("pretrained_config") or {}
    found += _compare_model(checkpoint, model)
    if "--logits_dtype" in flags:  # Triton's tensors of logits are of this type
        found.append(
            FlagDifference("logits_dtype", flags["--logits_dtype"], model.get("logits_dtype"))
        )
    found += _compare_sizes(flags, built.get("build_config") or {})
    found += _compare_plugins(flags, (built.get("build_config") or {}).get("plugin_config") or {})
    return [difference for difference in found if difference.planned != difference.built]


def _compare_model(
    planned: Mapping[str, Any], built: Mapping[str, Any]
) -> Iterator[FlagDifference]:
    for key in _MODEL:
        if planned.get(key) is not None:
            yield FlagDifference(key, planned[key], built.get(key))
    for section, keys in (
        ("mapping", ("world_size", "tp_size", "pp_size")),
        ("quantization", ("quant_algo", "kv_cache_quant_algo")),
    ):
        wanted, found = planned.get(section) or {}, built.get(section) or {}
        for key in (key for key in keys if key in wanted):
            yield FlagDifference(f"{section}.{key}", wanted[key], found.get(key))


def _compare_sizes(flags: Mapping[str, str], built: Mapping[str, Any]) -> Iterator[FlagDifference]:
    for key in _EQUAL:
        if f"--{key}" in flags:
            yield FlagDifference(key, int(flags[f"--{key}"]), built.get(key))
    mode = flags.get("--speculative_decoding_mode", "none")
    yield FlagDifference("speculative_decoding_mode", MODE_NUMBERS[mode], _mode(built))
    if "--kv_cache_type" in flags:
        kind = str(built.get("kv_cache_type")).rpartition(".")[2].lower()
        yield FlagDifference("kv_cache_type", flags["--kv_cache_type"], kind)
    yield from _compare_lengths(flags, built)


def _compare_lengths(
    flags: Mapping[str, str], built: Mapping[str, Any]
) -> Iterator[FlagDifference]:
    """Compare lengths, which may grow: trtllm-build adds the draft tokens to max_seq_len.

    It also lowers lengths that the engine cannot use.
    """
    sequence, batch = int(flags["--max_seq_len"]), int(flags["--max_batch_size"])
    least = {
        "max_seq_len": sequence,
        "max_input_len": min(int(flags.get("--max_input_len", 0)), sequence),
        "max_num_tokens": min(int(flags.get("--max_num_tokens", 0)), sequence * batch),
    }
    for key, value in least.items():
        have = built.get(key)
        if not isinstance(have, int) or have < value:
            yield FlagDifference(key, f"at least {value}", have)


def _compare_plugins(
    flags: Mapping[str, str], built: Mapping[str, Any]
) -> Iterator[FlagDifference]:
    for key in _PLUGINS:
        planned = flags.get(f"--{key}")
        if planned not in (None, "auto"):
            yield FlagDifference(f"plugin_config.{key}", planned, _plugin_value(built.get(key)))


def _plugin_value(value: object) -> str:
    """Return a value of plugin_config as the flags of trtllm-build spell it."""
    if isinstance(value, bool) or value is None:
        return "enable" if value else "disable"
    return str(value)


def _mode(built: Mapping[str, Any]) -> object:
    mode = built.get("speculative_decoding_mode")
    return MODE_NUMBERS.get(mode.lower(), mode) if isinstance(mode, str) else mode


def _missing_ranks(built: Mapping[str, Any], engine: Path) -> Iterator[FlagDifference]:
    mapping = (built.get("pretrained_config") or {}).get("mapping") or {}
    for rank in range(int(mapping.get("world_size", 1))):
        file = engine / f"rank{rank}.engine"
        if not file.is_file() or file.stat().st_size == 0:
            yield FlagDifference(file.name, "a file", "missing" if not file.exists() else "empty")


def _read(file: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageFailed(f"compile: {file.name} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise StageFailed(f"compile: {file.name} is not a JSON object")
    return values
