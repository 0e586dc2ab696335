"""Drafters that are not Medusa heads, recognised so that nobody waits for an engine of them.

EAGLE's is one decoder layer behind a matrix `fc` over token and hidden state (EAGLE-3's layer is
called `midlayer`); ReDrafter's is a small recurrent net, whose tensors may look like those of one
Medusa head (examples/redrafter/convert_checkpoint.py lists its three spellings).
"""

from collections.abc import Set
from pathlib import Path

from specpipe.checkpoint.source import read_json
from specpipe.errors import Unsupported
from specpipe.methods import ELSEWHERE

_REDRAFTER = ("rnn_u.weight", "input_proj.weight", "input_projs.weight", "lm_heads.0.linear.weight")
# method -> what its drafter is called, and the way to it
_KINDS = {
    "eagle": ("an EAGLE drafter", ELSEWHERE["eagle"]),
    "redrafter": ("a ReDrafter", "set speculation.method: redrafter"),
}


def refuse_drafter(path: Path, names: Set[str]) -> None:
    """Raise Unsupported, naming the way, if the tensors are a drafter of EAGLE or ReDrafter."""
    if method := drafter_method(path, names):
        kind, hint = _KINDS[method]
        raise Unsupported(f"{path}: this is {kind}, not Medusa heads", hint=hint)


def drafter_method(path: Path, names: Set[str]) -> str | None:
    """Return `eagle` or `redrafter` if that is what the tensors and their config belong to."""
    if "fc.weight" in names and any(n.startswith(("layers.0.", "midlayer.")) for n in names):
        return "eagle"
    if names & set(_REDRAFTER):
        return "redrafter"
    config = path / "config.json"
    if config.is_file() and {"exit_dim", "num_draft_layers"} <= read_json(config).keys():
        return "redrafter"
    return None
