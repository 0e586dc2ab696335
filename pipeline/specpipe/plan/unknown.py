"""What a plan can tell of a model whose architecture specpipe or TensorRT-LLM may not know."""

from collections.abc import Iterator, Mapping, Sequence

from specpipe.config.run_config import EngineOptions, RunConfig
from specpipe.core.contracts import Role
from specpipe.core.errors import Rejection
from specpipe.core.model import ModelConfig
from specpipe.engine.llmapi.architectures import ARCHITECTURES
from specpipe.plan.gpus import Gpu
from specpipe.plan.memory import RESERVE

_RANKS = (1, 2, 4, 8, 16)


def check_unknown(
    config: RunConfig, models: Mapping[Role, ModelConfig], gpu: Gpu | None
) -> Iterator[Rejection]:
    """Refuse ranks that only sizes could choose, and GPUs that cannot hold even the weights."""
    stored, engine = _stored(models), config.engine
    if not engine.tp_size:
        least = _least_ranks(stored, gpu) if gpu and stored else None
        yield Rejection(
            f"engine.tp_size is not given, and specpipe cannot choose it: {_who(models)}",
            "set engine.tp_size"
            + (f" to {least} or more, which hold the weights" if least else ""),
        )
    elif gpu and stored and not _holds(gpu, stored, engine.parallel.world_size):
        yield Rejection(
            f"the weights need {stored / 2**30:.1f} GiB on {_ranks(engine)} with "
            f"{gpu.memory_bytes * (1 - RESERVE) / 2**30:.1f} GiB each",
            "raise engine.tp_size or engine.pp_size, or use larger GPUs",
        )


def unknown_notes(models: Mapping[Role, ModelConfig]) -> Iterator[str]:
    """Yield what is not known, and what is."""
    stored = _stored(models)
    weights = f"its weights take {stored / 2**30:.1f} GiB; " if stored else ""
    yield f"{_who(models)}; {weights}whether it fits with its KV cache is not known here"


def class_notes(config: RunConfig, models: Mapping[Role, ModelConfig]) -> Iterator[str]:
    """Yield the architectures that TensorRT-LLM's LLM API may not know."""
    if config.engine.backend != "llmapi":
        return
    for name in dict.fromkeys(model.architecture for model in models.values()):
        if name not in ARCHITECTURES:
            yield (
                f"TensorRT-LLM's LLM API may have no class for {name}: its sources of late 2025 "
                "have none; try the model with it first, or use another backend"
            )


def _who(models: Mapping[Role, ModelConfig]) -> str:
    """Return which sizes are missing: of an architecture, or of files that are not on this disk."""
    known = [m for m in models.values() if m.intermediate_size]  # a family here has read it
    if len(known) == len(models) and not _stored(models):
        names = _joined([m for m in known if not m.stored_bytes])
        return f"the size of the weights of {names} is not known: the files are not on this disk"
    unread = [m for m in models.values() if not m.intermediate_size] or known
    return f"specpipe does not know all sizes of {_joined(unread)}"


def _joined(models: Sequence[ModelConfig]) -> str:
    return " and ".join(dict.fromkeys(model.architecture for model in models))


def _stored(models: Mapping[Role, ModelConfig]) -> int:
    """Return the bytes of all weights; 0 if those of one model are not known."""
    sizes = [model.stored_bytes for model in models.values()]
    return sum(sizes) if all(sizes) else 0


def _holds(gpu: Gpu, stored: int, ranks: int) -> bool:
    return stored <= ranks * gpu.memory_bytes * (1 - RESERVE)


def _least_ranks(stored: int, gpu: Gpu) -> int | None:
    return next((n for n in _RANKS if _holds(gpu, stored, n)), None)


def _ranks(engine: EngineOptions) -> str:
    return f"{engine.parallel.world_size} x {engine.gpu}"
