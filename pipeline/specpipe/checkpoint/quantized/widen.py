"""Loads a checkpoint that others quantized as a float32 model of transformers.

So that it can be judged without the packages that quantised it, on any machine.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from specpipe.checkpoint.quantized.foreign import Foreign
from specpipe.checkpoint.quantized.layouts import LAYOUTS, MARKS
from specpipe.checkpoint.source import Source, TensorReader, read_tensors

if TYPE_CHECKING:
    import torch


def load_widened(source: Source, foreign: Foreign) -> Any:
    """Return the transformers model of a quantised folder, with float32 weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source.path, local_files_only=True)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config))
    with read_tensors(source.weights) as reader:
        state = dict(_weights(reader, foreign))
    # unlike load_state_dict, this knows what transformers renamed and which experts it stacks
    return kind.from_pretrained(None, config=config, state_dict=state, torch_dtype=torch.float32)


def _weights(reader: TensorReader, foreign: Foreign) -> "Iterator[tuple[str, torch.Tensor]]":
    mark = MARKS[foreign.method]
    modules = {n.removesuffix(mark) for n in reader.names() if n.endswith(mark)}
    for name in reader.names():
        module, _, kind = name.rpartition(".")
        if module not in modules or kind == "bias":
            yield name, reader.read(name).float()
    for module in modules:
        yield f"{module}.weight", _widen(reader, module, foreign)


def _widen(reader: TensorReader, module: str, foreign: Foreign) -> "torch.Tensor":
    """Return the weights [n, k] of one layer."""
    if foreign.method == "modelopt_fp8":
        return reader.read(f"{module}.weight").float() * reader.read(f"{module}.weight_scale")
    layout = LAYOUTS[foreign.method]
    levels = layout.levels(reader.read(f"{module}.qweight")).float()
    zeros = layout.zeros(reader.read(f"{module}.qzeros")).float()
    scales = reader.read(f"{module}.scales").float()
    zeros, scales = (t.repeat_interleave(foreign.group, dim=0) for t in (zeros, scales))
    return ((levels - zeros) * scales).T.contiguous()
