"""A checkpoint that others quantised, as the float32 model that its numbers mean, in transformers.

So that it can be judged without the packages that quantised it, on any machine.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from specpipe.checkpoint.quantized.foreign import LAYOUTS, MARKS, Foreign
from specpipe.checkpoint.source import Source, TensorReader, read_tensors

if TYPE_CHECKING:
    import torch


def load_widened(source: Source, foreign: Foreign) -> Any:
    """Return the transformers model of a quantised folder, with float32 weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source.path)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, torch_dtype=torch.float32)
    with read_tensors(source.weights) as reader:
        state = dict(_weights(reader, foreign))
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model


def _weights(reader: TensorReader, foreign: Foreign) -> "Iterator[tuple[str, torch.Tensor]]":
    mark = MARKS[foreign.method]
    modules = {n.removesuffix(mark) for n in reader.names() if n.endswith(mark)}
    for name in reader.names():
        module = name.rpartition(".")[0]
        if module not in modules:
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
