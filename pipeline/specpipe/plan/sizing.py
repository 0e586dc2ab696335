"""Try a deployment at other sizes: choose ranks, find limits, and find changes that fit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from specpipe.config.run_config import EngineOptions, RunConfig
from specpipe.core.contracts import Role
from specpipe.core.errors import Rejection
from specpipe.core.model import ModelConfig, Quantization
from specpipe.engine.backend import Backend
from specpipe.plan.memory import Largest, Memory, largest, plan_memory
from specpipe.plan.plan import make_requests

_RANKS = (1, 2, 4, 8)  # of one machine
# Weights in the order in which they are proposed: on GPUs, and on a CPU.
_SMALLER: tuple[Quantization, ...] = ("fp8", "int8", "int4_awq", "nvfp4")
_SMALLER_ON_CPU: tuple[Quantization, ...] = ("int8", "int4")
MOST_BATCH, MOST_LENGTH = 4096, 2**20


@dataclass(frozen=True)
class Sizing:
    """A run whose sizes may be varied; `available` is the memory of one GPU or of the machine."""

    config: RunConfig
    models: Mapping[Role, ModelConfig]
    backend: Backend
    available: int

    def with_engine(self, engine: EngineOptions) -> "Sizing":
        """Return the same run with other engine options."""
        return replace(self, config=replace(self.config, engine=engine))

    def memory(self) -> Memory:
        """Return the memory that the run needs."""
        requests = make_requests(self.config, self.models)
        footprints = {role: self.backend.footprint(r) for role, r in requests.items()}
        on_gpu = self.config.engine.gpu is not None
        return plan_memory(footprints, self.available, on_gpu=on_gpu)

    def rejections(self) -> set[Rejection]:
        """Return the backend's refusals."""
        requests = make_requests(self.config, self.models)
        return {r for request in requests.values() for r in self.backend.check(request)}

    def fits(self, engine: EngineOptions, known: set[Rejection]) -> bool:
        """Tell whether the run fits with other options, without a new refusal."""
        other = self.with_engine(engine)
        return other.memory().fits and other.rejections() <= known


def choose_ranks(sizing: Sizing) -> int:
    """Return the fewest tensor-parallel ranks of one machine that fit; the most if none do."""
    tried = {n: sizing.with_engine(replace(sizing.config.engine, tp_size=n)) for n in _RANKS}
    known = tried[1].rejections()
    possible = [n for n, other in tried.items() if other.rejections() <= known]
    return next((n for n in possible if tried[n].memory().fits), possible[-1])


def measure(sizing: Sizing) -> Memory:
    """Return the memory that the run needs, with the largest batch and length that fit."""
    return replace(sizing.memory(), largest=_largest(sizing))


def _largest(sizing: Sizing) -> Largest:
    """Find the limits for a KV cache that holds every sequence at its longest."""
    engine = replace(sizing.config.engine, kv_cache_tokens=None)
    longest = min(
        [model.max_position_embeddings for model in sizing.models.values()] + [MOST_LENGTH]
    )

    def fits(changed: EngineOptions) -> bool:
        return sizing.with_engine(changed).memory().fits

    batch = largest(lambda n: fits(replace(engine, max_batch_size=n)), MOST_BATCH)
    length = largest(lambda n: fits(_of_length(engine, n)), longest)
    return Largest(batch, length)


def _of_length(engine: EngineOptions, length: int) -> EngineOptions:
    return replace(engine, max_seq_len=length, max_input_len=min(engine.max_input_len, length))


def ways_to_fit(sizing: Sizing, memory: Memory) -> list[str]:
    """Return changes with which a run that is too large would fit, one of each kind."""
    engine, known = sizing.config.engine, sizing.rejections()
    kinds = [*_cheaper(engine), *_smaller(sizing, memory.largest or Largest(0, 0))]
    return [f"engine.{way}" for kind in kinds if (way := _first_that_fits(sizing, kind, known))]


def _first_that_fits(
    sizing: Sizing, ways: Mapping[str, EngineOptions], known: set[Rejection]
) -> str | None:
    return next((way for way, engine in ways.items() if sizing.fits(engine, known)), None)


def _cheaper(engine: EngineOptions) -> Iterator[dict[str, EngineOptions]]:
    """Yield engines that need less memory for the same requests: more ranks, fewer bits."""
    on_cpu = engine.gpu is None
    if not on_cpu:
        yield {f"tp_size: {n}": replace(engine, tp_size=n) for n in _RANKS if n > engine.tp_size}
    if engine.quantization != "none":
        return
    if on_cpu and engine.dtype == "float32":
        yield {"dtype: bfloat16": replace(engine, dtype="bfloat16")}
    smaller = _SMALLER_ON_CPU if on_cpu else _SMALLER
    yield {f"quantization: {q}": replace(engine, quantization=q) for q in smaller}


def _smaller(sizing: Sizing, limits: Largest) -> Iterator[dict[str, EngineOptions]]:
    """Yield the largest batch and the largest length that fit, or both if neither is enough."""
    engine = sizing.config.engine
    least = max(engine.max_input_len, sizing.config.speculation.num_draft_tokens + 1)
    if limits.batch_size:
        batch = limits.batch_size
        yield {f"max_batch_size: {batch}": replace(engine, max_batch_size=batch)}
    if limits.seq_len > least:
        length = limits.seq_len
        yield {f"max_seq_len: {length}": replace(engine, max_seq_len=length)}
    elif not limits.batch_size:
        one = replace(engine, max_batch_size=1)
        length = _largest(sizing.with_engine(one)).seq_len
        if length > least:
            way = f"max_batch_size: 1 with engine.max_seq_len: {length}"
            yield {way: replace(one, max_seq_len=length)}
