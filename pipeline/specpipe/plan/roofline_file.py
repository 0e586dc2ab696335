"""A file of GPUs for `--cost-model`: data-sheet figures, from which step times are computed.

Nothing in it was measured. The file that comes with specpipe is made from `engine.gpus`; a user
may edit the figures, or the shares of them that kernels reach.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from specpipe.core.errors import ConfigError, Unsupported
from specpipe.engine.gpus import GPUS, Gpu, find_gpu, spelling
from specpipe.plan.roofline import Reached

KIND = "roofline"
NOTE = (
    "An estimate, not a measurement. The figures are those of public data sheets: memory bandwidth "
    "in 10^9 bytes a second, and dense throughput in 10^12 operations a second by number format "
    "(null: the tensor cores lack it). `reached` are assumed shares and times. `specpipe bench "
    "costs` measures a server instead."
)
_FORMATS = {
    "bfloat16": "fp16_tflops", "int8": "int8_tops", "fp8": "fp8_tflops", "nvfp4": "fp4_tflops",
}  # fmt: skip


@dataclass(frozen=True)
class Rooflines:
    """The GPUs of a file, and what is assumed to be reached of their figures."""

    gpus: Mapping[str, Gpu]
    reached: Reached

    def gpu(self, name: str) -> Gpu:
        """Return a GPU of the file; raises Unsupported if it has none of that name."""
        spelled = find_gpu(name)
        found = self.gpus.get(spelled.name if spelled else spelling(name))
        if found is None:
            raise Unsupported(
                f"the cost model has no GPU {name!r}", hint=f"known: {', '.join(self.gpus)}"
            )
        return found


def rooflines_text() -> str:
    """Return the text of the file for all GPUs of the table."""
    gpus = {
        gpu.name: {
            "bandwidth_gbs": gpu.bandwidth_gbs,
            "dense_tflops": {name: getattr(gpu, field) for name, field in _FORMATS.items()},
            "source": gpu.source,
        }
        for gpu in GPUS.values()
    }
    whole = {"kind": KIND, "estimated": True, "note": NOTE, "reached": asdict(Reached())}
    return json.dumps({**whole, "gpus": gpus}, indent=2) + "\n"


def read_rooflines(raw: Mapping[str, Any], file: str) -> Rooflines:
    """Read the parsed JSON of a file of GPUs; raises ConfigError if it is anything else."""
    try:
        if unknown := raw.keys() - {"kind", "estimated", "note", "reached", "gpus"}:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        names = {field.name for field in fields(Reached)}
        if unknown := raw.get("reached", {}).keys() - names:
            raise ValueError(f"reached has {', '.join(sorted(unknown))}")
        reached = Reached(**{k: _number(v) for k, v in raw.get("reached", {}).items()})
        gpus = {name: _gpu(name, values) for name, values in raw["gpus"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{file}: not a file of GPUs: {error}",
            hint="compare it with model_configs/cost_models/nvidia-gpus.json",
        ) from error
    return Rooflines(gpus, reached)


def _gpu(name: str, values: Mapping[str, Any]) -> Gpu:
    """Return a GPU of the table with the figures of a file: the plan needs its memory."""
    known = GPUS.get(name)
    if known is None:
        raise ValueError(f"{name} is not a GPU that specpipe knows")
    dense = values["dense_tflops"]
    return replace(
        known,
        bandwidth_gbs=_number(values["bandwidth_gbs"]),
        fp16_tflops=_number(dense["bfloat16"]),
        int8_tops=_number(dense["int8"]),
        fp8_tflops=_number_or_none(dense["fp8"]),
        fp4_tflops=_number_or_none(dense["nvfp4"]),
    )


def _number_or_none(value: object) -> float | None:
    return None if value is None else _number(value)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is not a number")
    if not 0 < value < math.inf:
        raise ValueError(f"{value} must be above 0")
    return float(value)
