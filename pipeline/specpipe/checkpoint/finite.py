"""Refuses weights that are not numbers, and those that the written type cannot hold.

The check is made in the block that is being written, while the processor's cache holds it.
"""

from typing import TYPE_CHECKING

from specpipe.core.errors import ConfigError

if TYPE_CHECKING:
    import torch


def require_finite(name: str, values: "torch.Tensor", written: "torch.Tensor") -> None:
    """Raise ConfigError, naming the tensor, unless all of `written` are numbers.

    `written` are `values` in the type that is written, or the same.
    """
    if _is_finite(written):
        return
    if not _is_finite(values):
        raise ConfigError(
            f"{name} holds NaN or infinite values",
            hint="the file is damaged, or training diverged: fetch it again, or use another "
            "checkpoint of the model",
        )
    largest, kind = float(values.abs().max()), str(written.dtype).removeprefix("torch.")
    raise ConfigError(
        f"{name} holds {largest:g}, which {kind} cannot hold",
        hint="set engine.dtype: bfloat16 (or float32)",
    )


def _is_finite(values: "torch.Tensor") -> bool:
    """Tell whether all values are numbers; of float8 nothing is known."""
    import torch

    if not values.numel() or not values.is_floating_point() or values.element_size() == 1:
        return True
    low, high = torch.aminmax(values)  # NaN wins in both
    return bool(torch.isfinite(low) & torch.isfinite(high))
