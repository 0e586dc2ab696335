"""The scaling of rotary positions in a GGUF file: in its metadata, or in a tensor of factors.

llama.cpp's converter writes Llama 3's scaling as `rope_freqs.weight`, a divisor of every frequency,
and LongRoPE as `rope_factors_long.weight` and `rope_factors_short.weight`.
"""

import math
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from specpipe.checkpoint.gguf.file import GgufFile
from specpipe.checkpoint.gguf.header import GgufHeader
from specpipe.core.errors import Unsupported

FREQUENCIES = "rope_freqs.weight"
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
_LOW, _HIGH = 1.0, 4.0  # of all models of Llama 3
# contexts that a model was trained with before its positions were scaled; Llama 3's comes first
_ORIGINAL = (8192, *(1 << bits for bits in range(5, 18) if bits != 13))


def scaling_of(header: GgufHeader) -> dict[str, Any] | None:
    """Return `rope_scaling` as config.json has it; None if the positions are not scaled.

    Raises Unsupported for factors that no known rule gives.
    """
    original = header.fact("rope.scaling.original_context_length")
    if _LONG in header.tensors and _SHORT in header.tensors:
        factors = {"short_factor": _values(header, _SHORT), "long_factor": _values(header, _LONG)}
        return {"type": "longrope", **factors}  # and what goes with them, outside: see `_phi3`
    if FREQUENCIES in header.tensors:
        return _llama3(header, _values(header, FREQUENCIES), original)
    kind = header.fact("rope.scaling.type") or "none"
    factor = header.fact("rope.scaling.factor") or header.fact("rope.scale_linear")
    if kind == "none" and factor in (None, 0.0, 1.0):
        return None
    scaling = {"rope_type": "linear" if kind == "none" else kind, "factor": factor}
    return {**scaling, **({"original_max_position_embeddings": original} if original else {})}


def _values(header: GgufHeader, name: str) -> list[float]:
    with closing(GgufFile(header.path)) as file:
        values: list[float] = file.read(name).flatten().tolist()
    return values


def _llama3(
    header: GgufHeader, divisors: Sequence[float], original: object
) -> dict[str, Any] | None:
    """Return the parameters of Llama 3's rule that gives these divisors; None if all are 1."""
    # The divisors are quotients in float32, which not every CPU rounds alike.
    factor = float(f"{max(divisors):.6g}")
    if all(math.isclose(divisor, 1.0, rel_tol=1e-6) for divisor in divisors):
        return None
    base = header.fact("rope.freq_base") or 10000.0
    theta = float(base) if isinstance(base, int | float) else 10000.0
    known = (original,) if isinstance(original, int) else ()
    for context in (*known, *_ORIGINAL):
        ours = _divisors(len(divisors), theta, factor, context)
        if all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(ours, divisors, strict=True)):
            return {
                "rope_type": "llama3", "factor": factor, "low_freq_factor": _LOW,
                "high_freq_factor": _HIGH, "original_max_position_embeddings": context,
            }  # fmt: skip
    raise Unsupported(
        f"{header.path}: {FREQUENCIES} holds no scaling of Llama 3's rule, and no other is known",
        hint="give the folder that the file was made from",
    )


def _divisors(count: int, theta: float, factor: float, original: int) -> list[float]:
    """Return what Llama 3's rule divides each frequency by (transformers, modeling_rope_utils)."""
    found = []
    for index in range(count):
        length = 2 * math.pi * theta ** (index / count)
        smooth = (original / length - _LOW) / (_HIGH - _LOW)
        smooth = min(max(smooth, 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found
