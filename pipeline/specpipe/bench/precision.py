"""The same run in other precisions, so that one config is measured in several."""

from collections.abc import Mapping
from dataclasses import replace

from specpipe.config.run_config import EngineOptions
from specpipe.core.errors import ConfigError
from specpipe.core.model import Dtype, Quantization
from specpipe.run.run import Run

PRECISIONS: Mapping[str, tuple[Dtype, Quantization]] = {  # engine.dtype, engine.quantization
    "float32": ("float32", "none"),
    "bfloat16": ("bfloat16", "none"),
    "int8": ("bfloat16", "int8"),
    "int8-float32": ("float32", "int8"),
    "int4": ("bfloat16", "int4"),
}


def precision_of(engine: EngineOptions) -> str:
    """Return the name of an engine's precision; one without a name is described by its keys."""
    keys = (engine.dtype, engine.quantization)
    return next((name for name, known in PRECISIONS.items() if known == keys), ", ".join(keys))


def with_precision(run: Run, name: str) -> Run:
    """Return the run in another precision, with artifacts of its own: `NAME.int8`.

    A run that has this precision is returned unchanged. Raises ConfigError for an unknown name.
    """
    if name not in PRECISIONS:
        raise ConfigError(f"{name!r} is not a precision", hint=f"known: {', '.join(PRECISIONS)}")
    config = run.config
    if precision_of(config.engine) == name:
        return run
    dtype, quantization = PRECISIONS[name]
    engine = replace(config.engine, dtype=dtype, quantization=quantization)
    return run.variant(replace(config, engine=engine, name=f"{config.name[:80]}.{name}"))
