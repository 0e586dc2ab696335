"""Finds the method that a drafter was trained for, to refuse it early in a run of another method.

EAGLE's is one decoder layer after a matrix `fc` over token and hidden state. EAGLE-3's is one too,
which is called `midlayer` by its authors and `layers.0` by others; it also has tables between two
vocabularies, `d2t` and `t2d`, or a norm of the hidden state. ReDrafter's is a small recurrent net,
whose tensors may look like those of one Medusa head (examples/redrafter/convert_checkpoint.py lists
its three spellings).
"""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from specpipe.checkpoint.plain_files import read_json
from specpipe.core.errors import Unsupported

_REDRAFTER = ("rnn_u.weight", "input_proj.weight", "input_projs.weight", "lm_heads.0.linear.weight")
_EAGLE3 = ("d2t", "t2d", "layers.0.hidden_norm.weight")
# method -> what its drafter is called, and what to do with one
_KINDS = {
    "eagle": ("an EAGLE drafter", "set speculation.method: eagle"),
    "eagle3": (
        "an EAGLE-3 drafter",
        "set speculation.method: eagle3 and engine.backend: openvino or llmapi; TensorRT-LLM's "
        "engines have only EAGLE-1 and EAGLE-2",
    ),
    "redrafter": ("a ReDrafter", "set speculation.method: redrafter"),
}


def refuse_other_drafters(path: Path, names: Set[str], wanted: str, what: str) -> None:
    """Raise Unsupported, naming the way, if the tensors are a drafter of another method.

    `wanted` is the method of the run, "" if a whole model is read, and `what` the drafter in words.
    """
    method = drafter_method(path, names)
    if method and method != wanted:
        kind, hint = _KINDS[method]
        raise Unsupported(f"{path}: this is {kind}, not {what}", hint=hint)


def drafter_method(path: Path, names: Set[str]) -> str | None:
    """Return the method that the tensors and their config belong to; None: none known here."""
    file = path / "config.json"
    config = read_json(file) if file.is_file() else {}
    if _is_eagle3(names, config):
        return "eagle3"
    if "fc.weight" in names and any(name.startswith("layers.0.") for name in names):
        return "eagle"
    if names & set(_REDRAFTER) or {"exit_dim", "num_draft_layers"} <= config.keys():
        return "redrafter"
    return None


def _is_eagle3(names: Set[str], config: Mapping[str, Any]) -> bool:
    if "fc.weight" in names and any(name.startswith("midlayer.") for name in names):
        return True
    return bool(names & set(_EAGLE3)) or is_named_eagle3(config)


def is_named_eagle3(config: Mapping[str, Any]) -> bool:
    """Tell whether a config.json names EAGLE-3."""
    speculators = config.get("speculators_config")
    algorithm = speculators.get("algorithm") if isinstance(speculators, dict) else None
    given = config.get("architectures")
    classes = given if isinstance(given, list) else []
    named = (config.get("speculators_model_type"), algorithm, *classes)
    return any("eagle3" in str(name).lower() for name in named)
