"""Calibrations, measured by hooks or invented, and the arithmetic of quantised layers once more."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from specpipe.checkpoint.convert import Conversion, read_model
from specpipe.checkpoint.families import TensorPlan, find_family
from specpipe.checkpoint.quantized.calibration import Calibration, write_calibration
from specpipe.checkpoint.quantized.formats import Quantizing
from specpipe.checkpoint.quantized.plans import modules_of
from specpipe.checkpoint.source import Source, open_source
from specpipe.core.divisibility import Parallel
from specpipe.engine.openvino.weights import Rounding

PROMPT = torch.arange(3, 120)[None]


def linears(model: Any) -> dict[str, nn.Linear]:
    """Return the layers that quantisation changes, by name."""
    found = model.named_modules()
    return {n: m for n, m in found if isinstance(m, nn.Linear) and n != "lm_head"}


def shared_input(name: str) -> str:
    """Name the input of a layer: q, k and v read the same, so do gate and up."""
    for parts in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        for part in parts:
            name = name.replace(part, parts[0])
    return name


def calibrate_by_hand(folder: Path, *, smooth: bool) -> Calibration:
    """Measure inputs and outputs with hooks; inputs are scaled by about one over their size."""
    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    seen: dict[str, torch.Tensor] = {}
    outputs: dict[str, float] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(module: object, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            seen[name] = inputs[0].detach().abs().amax(dim=(0, 1))
            outputs[name] = float(output.detach().abs().max())

        return note

    for name, layer in linears(model).items():
        layer.register_forward_hook(hook(name))
    with torch.no_grad():
        model(PROMPT)
    scales = {n: (1 / amax.clamp(min=1e-3)).sqrt() for n, amax in seen.items()} if smooth else {}
    largest = {n: float((amax * scales.get(n, 1)).max()) for n, amax in seen.items()}
    return Calibration(largest, scales, outputs)


def round_inputs(x: torch.Tensor, how: Rounding) -> torch.Tensor:
    """Round the inputs of a layer as its quantised weights ask for."""
    x = x if how.scale is None else x * torch.tensor(how.scale)
    units = x / how.step
    if how.kind == "int8":
        return units.round().clamp(-128, 127) * how.step
    return units.clamp(-448, 448).to(torch.float8_e4m3fn).float() * how.step


def write_quantised(
    folder: Path, out: Path, quantizing: Quantizing, dtype: str = "float32"
) -> Path:
    """Convert a Hugging Face folder with a calibration made by hand."""
    smooth = quantizing.weights in ("int8_sq", "int4_awq")
    out.mkdir()
    write_calibration(calibrate_by_hand(folder, smooth=smooth), out)
    Conversion(open_source(folder), dtype, quantizing=quantizing).write(
        out, lambda done, total: None
    )
    return out


def invented(plans: list[TensorPlan]) -> Calibration:
    """Return facts about every module that a plan names, without running anything."""
    rng = torch.Generator().manual_seed(3)
    columns = {m: p.shape[-1] for p in plans if p.name.endswith(".weight") for m in modules_of(p)}
    scales = {m: torch.rand(k, generator=rng) + 0.5 for m, k in columns.items()}
    return Calibration(dict.fromkeys(columns, 3.0), scales, {})


def convert_invented(source: Source, out: Path, quantizing: Quantizing, parallel: Parallel) -> Path:
    """Convert a model with an invented calibration."""
    family = find_family(source.hf_config)
    out.mkdir()
    write_calibration(invented(family.tensors(read_model(source, "float32"))), out)
    Conversion(source, "float32", None, quantizing, parallel).write(out, lambda done, total: None)
    return out
