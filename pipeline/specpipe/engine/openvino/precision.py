"""The precisions in which an engine computes on the CPU."""

from collections.abc import Collection
from dataclasses import dataclass

import openvino as ov

ITEM_BYTES = {
    "int8": 1.0,
    "int4": 0.6,
}  # bytes per weight, scales included; other weights are kept in float32


@dataclass(frozen=True)
class Precision:
    """How an engine computes, from its `dtype` and `quantization`.

    With quantized weights the plugin's bfloat16 path is slower than its float32 path, so both
    dtypes compute in float32. With `bfloat16`, activations are then rounded to 8 bits in groups of
    32 (OpenVINO's dynamic quantization) where the CPU has instructions for that; the error is as
    large as that of bfloat16 itself. The rounded rows do not depend on other rows, so
    `batch_invariant` engines always round.
    """

    dtype: str
    quantization: str
    batch_invariant: bool = False
    multiplies_int8: bool = True  # whether the CPU has instructions for 8-bit products

    @property
    def bfloat16(self) -> bool:
        """Whether arithmetic is in bfloat16, on a CPU that has it."""
        return self.dtype == "bfloat16" and self.quantization == "none"

    @property
    def kv_bytes(self) -> int:
        """The bytes of a value in the KV cache."""
        return 4 if self.dtype == "float32" else 2

    @property
    def rounds(self) -> bool:
        """Whether activations are rounded to 8 bits."""
        allowed = self.dtype == "bfloat16" and self.multiplies_int8
        return self.quantization in ITEM_BYTES and (allowed or self.batch_invariant)

    def cache_type(self, capabilities: Collection[str]) -> ov.Type:
        """Return the element type of the KV cache on a CPU with these `capabilities`.

        Where the plugin computes in float32, it accepts no bfloat16 cache. A float16 cache is as
        large and more precise; a step of four sequences of 1,900 tokens takes a quarter less time
        with it than with a float32 cache.
        """
        if self.dtype == "float32":
            return ov.Type.f32
        return ov.Type.bf16 if self.bfloat16 and "BF16" in capabilities else ov.Type.f16

    def properties(self, cache_type: ov.Type) -> dict[str, str]:
        """Return the plugin's settings."""
        return {
            "INFERENCE_PRECISION_HINT": "bf16" if self.bfloat16 else "f32",
            "KV_CACHE_PRECISION": cache_type.get_type_name(),
            "PERFORMANCE_HINT": "LATENCY",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32" if self.rounds else "0",
            "TBB_PARTITIONER": "STATIC",
        }
