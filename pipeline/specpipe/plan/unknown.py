"""What a plan can tell of a model whose architecture specpipe or TensorRT-LLM may not know."""

from collections.abc import Iterator, Mapping, Sequence

from specpipe.config.run_config import EngineOptions, RunConfig
from specpipe.core.contracts import Role
from specpipe.core.errors import Rejection
from specpipe.core.model import ModelConfig
from specpipe.engine.gpus import Gpu
from specpipe.plan.memory import RESERVE
from specpipe.plan.resolve import Resolved

_RANKS = (1, 2, 4, 8, 16)
_HOLD = {True: "hold the weights", False: "hold what is known of the weights"}


def check_unknown(config: RunConfig, found: Resolved, gpu: Gpu | None) -> Iterator[Rejection]:
    """Refuse ranks that only sizes could choose, and GPUs that cannot hold even the weights."""
    engine, weights = config.engine, _weights(found)
    if not engine.tp_size:
        least = _least_ranks(weights, gpu) if gpu and weights else None
        known = bool(_stored(found.models))
        yield Rejection(
            f"engine.tp_size is not given, and specpipe cannot choose it: {_who(found.models)}",
            "set engine.tp_size" + (f" to {least} or more, which {_HOLD[known]}" if least else ""),
        )
    elif gpu and weights and not _holds(gpu, weights, engine.parallel.world_size):
        yield Rejection(
            f"the weights need {_amount(found)} on {_ranks(engine)} with "
            f"{gpu.memory_bytes * (1 - RESERVE) / 2**30:.1f} GiB each",
            "raise engine.tp_size or engine.pp_size, or use larger GPUs",
        )


def unknown_notes(found: Resolved) -> Iterator[str]:
    """Yield what is not known, and what is."""
    weights = f"its weights take {_amount(found)}; " if _weights(found) else ""
    yield f"{_who(found.models)}; {weights}whether it fits with its KV cache is not known here"


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


def _weights(found: Resolved) -> int:
    """Return the bytes of all weights: as stored, else what they are at least."""
    stored = sum(model.stored_bytes for model in found.models.values())
    return _stored(found.models) or stored + found.least_bytes


def _amount(found: Resolved) -> str:
    least = "" if _stored(found.models) else "at least "
    return f"{least}{_weights(found) / 2**30:.1f} GiB"


def _holds(gpu: Gpu, stored: int, ranks: int) -> bool:
    return stored <= ranks * gpu.memory_bytes * (1 - RESERVE)


def _least_ranks(stored: int, gpu: Gpu) -> int | None:
    return next((n for n in _RANKS if _holds(gpu, stored, n)), None)


def _ranks(engine: EngineOptions) -> str:
    return f"{engine.parallel.world_size} x {engine.gpu}"
