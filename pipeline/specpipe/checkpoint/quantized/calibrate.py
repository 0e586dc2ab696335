"""Runs prompts through a model with NVIDIA Model-Optimizer, to measure what its formats need.

Model-Optimizer calibrates the Hugging Face model in memory, on a GPU if there is one. Only what it
finds out is kept: weights are quantised from the files, tensor by tensor, as they are converted.
"""

import contextlib
import copy
import importlib.metadata
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from specpipe.checkpoint.quantized.calibration import Calibration
from specpipe.checkpoint.quantized.formats import CALIBRATED, Quantizing
from specpipe.checkpoint.source import Source
from specpipe.checkpoint.tokenizer_files import open_tokenizer
from specpipe.core.errors import ConfigError, Unsupported

if TYPE_CHECKING:
    import torch

PACKAGE = "nvidia-modelopt"
MISSING = "in a clone of specpipe: pip install -e '.[quantize]'"
MOST_PROMPTS, MOST_TOKENS = 512, 2048  # as upstream's quantize.py takes samples; longest prompt
_CONFIGS = {
    "fp8": "FP8_DEFAULT_CFG",
    "int8_sq": "INT8_SMOOTHQUANT_CFG",
    "int4_awq": "INT4_AWQ_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
}


def modelopt_version() -> str | None:
    """Return the installed Model-Optimizer's version; None if there is none."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


def calibrate(
    source: Source,
    quantizing: Quantizing,
    *,
    linears: Sequence[str],
    caches: Sequence[str],
    group: int | None,
    prompts: Sequence[str],
) -> Calibration:
    """Run the prompts through the model and return what was found.

    `linears` are the modules to be quantised, `caches` those whose outputs the KV cache keeps;
    `group` is the number of columns that share an int4 scale. Raises Unsupported if Model-Optimizer
    is not installed or the model is a GGUF file.
    """
    if source.path.is_file():
        raise Unsupported(
            f"{source.path}: calibration starts from a Hugging Face folder",
            hint="save the dequantised model as one, as `scripts/fetch-model` does",
        )
    model, tokens = load_model(source, prompts)
    outputs: dict[str, float] = {}
    for name in caches:
        model.get_submodule(name).register_forward_hook(_largest_into(outputs, name))
    if quantizing.weights in CALIBRATED:
        model = quantize_model(model, quantizing, group, tokens)
    else:
        _run(model, tokens)
    quantizers = {name: input_quantizer(model, name) for name in linears}
    scales = {name: _input_scale(model, name, q) for name, q in quantizers.items()}
    return Calibration(
        {n: float(q.amax) for n, q in quantizers.items() if q is not None and _has(q, "amax")},
        {name: scale for name, scale in scales.items() if scale is not None},
        outputs,
    )


def load_model(source: Source, prompts: Sequence[str]) -> "tuple[Any, list[torch.Tensor]]":
    """Return the Hugging Face model, on a GPU if there is one, and each prompt as tokens [1, n].

    Raises ConfigError for a prompt without tokens.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = open_tokenizer(source).reader
    found = []
    for prompt in prompts[:MOST_PROMPTS]:
        text = prompt
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
        ids = tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"]
        if not ids:
            raise ConfigError(
                f"the calibration prompt {prompt!r} has no tokens",
                hint="remove it from validate.prompts, the prompts of a calibration",
            )
        found.append(ids[:MOST_TOKENS])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = (
        AutoModelForCausalLM.from_pretrained(source.path, torch_dtype="auto", local_files_only=True)
        .to(device)
        .eval()
    )
    return model, [torch.tensor([ids], device=device) for ids in found]


def _run(model: Any, tokens: "Sequence[torch.Tensor]") -> None:
    import torch

    with torch.no_grad():
        for ids in tokens:
            model(input_ids=ids, use_cache=False)


def _largest_into(outputs: dict[str, float], name: str) -> Callable[..., None]:
    def hook(module: object, inputs: object, output: "torch.Tensor") -> None:
        outputs[name] = max(outputs.get(name, 0.0), float(output.detach().abs().max()))

    return hook


def quantize_model(
    model: Any, quantizing: Quantizing, group: int | None, tokens: "Sequence[torch.Tensor]"
) -> Any:
    """Return the model with Model-Optimizer's quantizers, calibrated with the prompts."""
    with _modelopt() as mtq:
        config = copy.deepcopy(getattr(mtq, _CONFIGS[quantizing.weights]))
        if quantizing.weights == "int4_awq":
            _set_group(config["quant_cfg"], group)
        return mtq.quantize(model, config, lambda m: _run(m, tokens))


def _set_group(entries: Any, group: int | None) -> None:
    """Set the columns of a group; older releases have a mapping of patterns, newer ones a list."""
    found = [e.get("cfg") for e in entries] if isinstance(entries, list) else entries.values()
    for entry in found:
        if isinstance(entry, dict) and -1 in (entry.get("block_sizes") or {}):
            entry["block_sizes"][-1] = group


@contextlib.contextmanager
def _modelopt() -> Iterator[Any]:
    """Import Model-Optimizer, which prints and warns; standard output is for data."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        try:
            import modelopt.torch.quantization as mtq
        except ImportError as error:
            raise Unsupported(
                f"calibration needs Model-Optimizer: {error}", hint=MISSING
            ) from error
        yield mtq


def input_quantizer(model: Any, name: str) -> Any | None:
    """Return what Model-Optimizer put before a module of the checkpoint; None if there is nothing.

    transformers 5 keeps the experts of a layer as one module with two tensors, before each of which
    all of them share a quantiser.
    """
    experts, part = _fused_experts(model, name)
    if experts is not None:
        return getattr(experts, f"{part}_input_quantizer", None)
    return getattr(model.get_submodule(name), "input_quantizer", None)


def _fused_experts(model: Any, name: str) -> tuple[Any | None, str]:
    """Return the module with all experts and the tensor that has the weights `name`, if it does."""
    found = re.fullmatch(r"(.+)\.(?:block_sparse_moe|mlp)\.experts\.\d+\.(\w+)", name)
    experts = found and getattr(
        getattr(model.get_submodule(found[1]), "mlp", None), "experts", None
    )
    if not found or not hasattr(experts, "gate_up_proj"):
        return None, ""
    return experts, "down_proj" if found[2] in ("w2", "down_proj") else "gate_up_proj"


def _input_scale(model: Any, name: str, quantizer: Any | None) -> "torch.Tensor | None":
    """Return what the inputs [k] of a module are multiplied by, if anything.

    Model-Optimizer looks for no such scale where experts are one module: theirs is 1.
    """
    import torch

    experts, part = _fused_experts(model, name)
    if experts is not None:
        return torch.ones(getattr(experts, part).shape[-1])
    if quantizer is None or not _has(quantizer, "pre_quant_scale"):
        return None
    scale: torch.Tensor = quantizer.pre_quant_scale.detach().float().flatten().cpu()
    return scale


def _has(quantizer: Any, attribute: str) -> bool:
    return getattr(quantizer, attribute, None) is not None
