"""The tensors of a ReDrafter in its target's checkpoint, and the spellings of their sources.

Not here: the folder of a drafter; see `redrafter`.
"""

import re

from specpipe.checkpoint.families import Shard, TensorPlan
from specpipe.core.drafters import TOKEN_MAP
from specpipe.core.model import ModelConfig

MODULE = "drafter"


OUTPUT = f"{MODULE}.lm_head.weight"


_NAME = re.compile(
    r"(?:lm_heads?|0)\.(?P<layer>\d+)\.linear\.(?P<part>weight|bias)"
    r"|(?:lm_heads?|0)\.(?P<output>\d+)\.weight"
    r"|(?P<input>input_proj)s?\.(?P<of_input>weight|bias)"
    rf"|(?P<own>rnn_u\.weight|rnn_u\.bias|rnn_w\.weight|{TOKEN_MAP})"
)


def planned_drafter(model: ModelConfig) -> list[TensorPlan]:
    """List the tensors of the drafter in `model`; their sources have the same names.

    Each is cut by rows, the output layer without padding (`hf_drafter`, upstream's converter).
    """
    if model.redrafter is None:
        return []
    shapes = model.redrafter.shapes(model.hidden_size, model.vocab_size)
    return [
        TensorPlan(f"{MODULE}.{n}", shape, (f"{MODULE}.{n}",), (shape,), Shard.ROWS, stage="every")
        for n, shape in shapes.items()
    ]


def canonical(name: str) -> str | None:
    """Return TensorRT-LLM's name of a drafter's tensor; None for any other tensor."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    if match["layer"] is not None:
        return f"{MODULE}.layers.{match['layer']}.linear.{match['part']}"
    if match["output"] is not None:
        return f"{MODULE}.lm_head.weight"
    return f"{MODULE}.{match['own'] or match['input'] + '.' + match['of_input']}"
