"""Finds the method that a drafter was trained for, to refuse it early in a run of another method.

EAGLE's is one decoder layer after a matrix `fc` over token and hidden state (EAGLE-3's layer is
called `midlayer`); ReDrafter's is a small recurrent net, whose tensors may look like those of one
Medusa head (examples/redrafter/convert_checkpoint.py lists its three spellings).
"""

from collections.abc import Set
from pathlib import Path

from specpipe.checkpoint.source import read_json
from specpipe.core.errors import Unsupported

_REDRAFTER = ("rnn_u.weight", "input_proj.weight", "input_projs.weight", "lm_heads.0.linear.weight")
# method -> what its drafter is called, and what to do with one
_KINDS = {
    "eagle": ("an EAGLE drafter", "set speculation.method: eagle"),
    "eagle3": (
        "an EAGLE-3 drafter",
        "set speculation.method: eagle3 and engine.backend: llmapi; TensorRT-LLM's engines have "
        "only EAGLE-1 and EAGLE-2",
    ),
    "redrafter": ("a ReDrafter", "set speculation.method: redrafter"),
}


def refuse_other_drafters(path: Path, names: Set[str], wanted: str, what: str) -> None:
    """Raise Unsupported, naming the way, if the tensors are a drafter of another method.

    `wanted` is the method of the run and `what` its drafter in words.
    """
    method = drafter_method(path, names)
    if method and method != wanted:
        kind, hint = _KINDS[method]
        raise Unsupported(f"{path}: this is {kind}, not {what}", hint=hint)


def drafter_method(path: Path, names: Set[str]) -> str | None:
    """Return the method that the tensors and their config belong to; None: none known here."""
    if "fc.weight" in names and any(name.startswith("midlayer.") for name in names):
        return "eagle3"
    if "fc.weight" in names and any(name.startswith("layers.0.") for name in names):
        return "eagle"
    if names & set(_REDRAFTER):
        return "redrafter"
    config = path / "config.json"
    if config.is_file() and {"exit_dim", "num_draft_layers"} <= read_json(config).keys():
        return "redrafter"
    return None
