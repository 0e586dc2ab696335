"""The quantization that config.json names, compared with the types of the tensors."""

from collections.abc import Iterator, Mapping

from specpipe.checkpoint.families.keys import short
from specpipe.checkpoint.inspection.config import Json, table, text
from specpipe.checkpoint.inspection.records import InspectionFinding
from specpipe.core.errors import first_few

# `QuantAlgo` (tensorrt_llm/quantization/mode.py); "NO_QUANT" and null mean plain weights
ALGORITHMS = (
    "W8A16", "W4A16", "W4A16_AWQ", "W4A8_AWQ", "W8A16_GPTQ", "W4A16_GPTQ", "W8A8_SQ_PER_CHANNEL",
    "W8A8_SQ_PER_TENSOR_PLUGIN", "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
    "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN", "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN",
    "W4A8_QSERVE_PER_GROUP", "W4A8_QSERVE_PER_CHANNEL", "FP8", "FP8_PER_CHANNEL_PER_TOKEN",
    "FP8_BLOCK_SCALES", "INT8", "MIXED_PRECISION", "NVFP4", "W4A8_NVFP4_FP8", "W4A8_MXFP4_FP8",
    "W4A8_MXFP4_MXFP8", "W4A16_MXFP4", "NO_QUANT",
)  # fmt: skip
CACHES = ("INT8", "FP8", "NVFP4", "NO_QUANT")
_BY_BUILD = ("W8A16", "W4A16")  # trtllm-build may quantise such weights, which are plain until then
_PLAIN = ("float32", "float16", "bfloat16")
# how an algorithm begins -> the types that its packed weights may have
_PACKED = {
    "FP8": ("float8_e4m3fn",),
    "W8": ("int8",),
    "INT8": ("int8",),
    "W4": ("int8", "uint8", "int32"),
    "NVFP4": ("int8", "uint8", "int32"),
}


def check_algorithms(raw: Json) -> Iterator[InspectionFinding]:
    """Yield names of quantization algorithms that upstream does not know."""
    quantization = table(raw, "quantization")
    for key, known in (("quant_algo", ALGORITHMS), ("kv_cache_quant_algo", CACHES)):
        value = quantization.get(key)
        if value is not None and value not in known:
            yield InspectionFinding(
                f"config.json: 'quantization.{key}' is {short(value)}, which TensorRT-LLM does not "
                "know",
                f"it knows {', '.join(known)}",
            )


def algorithm(raw: Json) -> str | None:
    """Return the quantization algorithm of the weights; None if they are plain."""
    name = text(table(raw, "quantization"), "quant_algo")
    return None if name == "NO_QUANT" else name


def check_weights(rank: int, types: Mapping[str, str], raw: Json) -> Iterator[InspectionFinding]:
    """Yield weights of another type than the algorithm makes; `types`: of a rank, by name."""
    name = algorithm(raw)
    packed = {n: t for n, t in types.items() if n.endswith(".weight") and t not in _PLAIN}
    if name is None or name not in ALGORITHMS:
        return
    if not packed and name not in _BY_BUILD:
        yield InspectionFinding(
            f"rank {rank}: quant_algo is {name}, but no weight is quantised",
            "remove 'quantization' from config.json, or convert the model again",
        )
    allowed = next((types for begin, types in _PACKED.items() if name.startswith(begin)), None)
    other = sorted(n for n, kind in packed.items() if allowed and kind not in allowed)
    if other:
        yield InspectionFinding(
            f"rank {rank}: {first_few(other)}: {packed[other[0]]} weights, but quant_algo is "
            f"{name}",
            "correct 'quantization' in config.json, or convert the model again",
        )
