"""Inspects an EAGLE-3 drafter by itself: what it drafts, and what is wrong with its parts."""

from pathlib import Path

from specpipe.checkpoint.drafter_method import is_named_eagle3
from specpipe.checkpoint.eagle3 import Eagle3Source, open_eagle3
from specpipe.checkpoint.inspection.config import Json
from specpipe.checkpoint.inspection.records import (
    File,
    InspectedModel,
    Inspection,
    InspectionFinding,
    Speculation,
)

_TARGET = "whether it fits its target: `specpipe plan` compares both"


def is_eagle3(folder: Path, raw: Json) -> bool:
    """Tell whether a folder of Hugging Face is an EAGLE-3 drafter by its config.json."""
    return "architectures" in raw and is_named_eagle3(raw)


def inspect_eagle3(folder: Path) -> Inspection:
    """Describe a drafter in either layout.

    Raises what `open_eagle3` raises.
    """
    source = open_eagle3(folder)
    known = source.settings
    layout = "speculators" if known.speculators else "its authors'"
    found = [InspectionFinding(r.reason, r.hint) for r in source.defects()]
    missing = known.norm_before_residual is None
    remarks = ["norm_before_residual is not given: libraries differ in the default"] * missing
    return Inspection(
        str(folder),
        "EAGLE-3 drafter",
        None,
        _described(source),
        Speculation(
            None, None, None, None, None, None, None, source.draft_vocab_size, known.layer_ids or ()
        ),
        None,
        None,
        tuple(File(p.name, p.stat().st_size) for p in source.weights),
        tuple(found),
        (f"its files have the layout of {layout}", *remarks),
        (_TARGET,),
    )


def _described(source: Eagle3Source) -> InspectedModel:
    net = source.settings.net
    return InspectedModel(
        architecture=net.architecture,
        base=None,
        dtype=None,
        num_hidden_layers=1,
        num_attention_heads=net.num_attention_heads,
        num_key_value_heads=net.num_key_value_heads,
        head_size=net.head_size,
        hidden_size=net.hidden_size,
        intermediate_size=net.intermediate_size,
        vocab_size=net.vocab_size,
        max_position_embeddings=net.max_position_embeddings,
        rotary_base=net.rotary_base,
        rotary_scaling=(net.rotary_scaling or {}).get("rope_type"),
        quantization=None,
        kv_cache_quantization=None,
    )
