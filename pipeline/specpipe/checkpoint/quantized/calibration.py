"""The results of a calibration: the largest inputs of every linear layer, and their scales.

Kept next to the weights that it shaped, as `calibration.safetensors`. Modules have the names of the
Hugging Face model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from specpipe.core.errors import ConfigError, StageFailed, first_few

if TYPE_CHECKING:
    import torch

FILE = "calibration.safetensors"
Value = TypeVar("Value")


@dataclass(frozen=True)
class Calibration:
    """Facts by module; what a format does not need may be missing."""

    input_amax: Mapping[str, float]  # largest input, after its scale
    input_scale: "Mapping[str, torch.Tensor]"  # [k]  inputs are multiplied by it, weights divided
    output_amax: Mapping[str, float]  # largest output

    def largest_input(self, modules: Sequence[str]) -> float:
        """Return the largest input of modules that share one; StageFailed if none is known."""
        return max(_of(self.input_amax, modules, "inputs"))

    def largest_output(self, modules: Sequence[str]) -> float:
        """Return the largest output of some modules; raises StageFailed if none is known."""
        return max(_of(self.output_amax, modules, "outputs"))

    def scale(self, modules: Sequence[str]) -> "torch.Tensor":
        """Return the mean of the input scales [k] of modules that share their input.

        Raises StageFailed if none is known.
        """
        import torch

        return torch.stack(_of(self.input_scale, modules, "input scales")).mean(dim=0)


def _of(table: Mapping[str, Value], modules: Sequence[str], what: str) -> list[Value]:
    """Return what is known of some modules; experts that no prompt reached go by the others."""
    known = [table[module] for module in modules if module in table]
    if not known:
        raise StageFailed(
            f"convert: the calibration knows no {what} of {first_few(modules)}",
            hint="the prompts never reached these layers; leave them out by engine.exclude_modules",
        )
    return known


def write_calibration(calibration: Calibration, folder: Path) -> None:
    """Write calibration.safetensors into `folder`; equal calibrations give equal bytes."""
    import torch
    from safetensors.torch import save_file

    tensors = {f"{m}.input_scale": t.float() for m, t in calibration.input_scale.items()}
    for kind in ("input_amax", "output_amax"):
        facts: Mapping[str, float] = getattr(calibration, kind)
        tensors |= {f"{m}.{kind}": torch.tensor(v, dtype=torch.float64) for m, v in facts.items()}
    temporary = folder / f"{FILE}.tmp"
    save_file(dict(sorted(tensors.items())), temporary)
    temporary.replace(folder / FILE)


def read_calibration(folder: Path) -> Calibration | None:
    """Read what `write_calibration` wrote; None if there is none.

    Raises ConfigError if the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / FILE
    if not file.is_file():
        return None
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file}: not a calibration: {error}", hint="remove the file") from error

    def of(kind: str) -> "dict[str, torch.Tensor]":
        return {n.rpartition(".")[0]: t for n, t in tensors.items() if n.endswith(f".{kind}")}

    return Calibration(
        {module: float(value) for module, value in of("input_amax").items()},
        of("input_scale"),
        {module: float(value) for module, value in of("output_amax").items()},
    )
