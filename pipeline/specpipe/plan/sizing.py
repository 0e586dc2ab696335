"""Trying a deployment at other sizes: ranks that are chosen, limits, and what would make it fit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from specpipe.building import Backend, Quantization, Rejection
from specpipe.config import EngineOptions, RunConfig
from specpipe.contracts import Role
from specpipe.model import ModelConfig
from specpipe.plan.memory import Largest, Memory, largest, plan_memory
from specpipe.plan.plan import make_requests

_RANKS = (1, 2, 4, 8)  # of one machine
_SMALLER: tuple[Quantization, ...] = (
    "fp8",
    "int8",
    "int4_awq",
    "nvfp4",
)  # in the order in which they are proposed
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
        """Return what the run takes."""
        requests = make_requests(self.config, self.models)
        footprints = {role: self.backend.footprint(r) for role, r in requests.items()}
        on_gpu = self.config.engine.gpu is not None
        return plan_memory(footprints, self.available, on_gpu=on_gpu)

    def rejections(self) -> set[Rejection]:
        """Return what the backend refuses."""
        requests = make_requests(self.config, self.models)
        return {r for request in requests.values() for r in self.backend.check(request)}

    def fits(self, engine: EngineOptions, known: set[Rejection]) -> bool:
        """Tell whether the run fits with other options, and is refused for nothing new."""
        other = self.with_engine(engine)
        return other.memory().fits and other.rejections() <= known


def choose_ranks(sizing: Sizing) -> int:
    """Return the fewest tensor-parallel ranks of one machine that fit; the most if none do."""
    tried = {n: sizing.with_engine(replace(sizing.config.engine, tp_size=n)) for n in _RANKS}
    known = tried[1].rejections()
    possible = [n for n, other in tried.items() if other.rejections() <= known]
    return next((n for n in possible if tried[n].memory().fits), possible[-1])


def measure(sizing: Sizing) -> Memory:
    """Return what the run takes, with the largest batch and length that fit."""
    engine = sizing.config.engine
    longest = min(
        [model.max_position_embeddings for model in sizing.models.values()] + [MOST_LENGTH]
    )

    def fits(changed: EngineOptions) -> bool:
        return sizing.with_engine(changed).memory().fits

    batch = largest(lambda n: fits(replace(engine, max_batch_size=n)), MOST_BATCH)
    length = largest(lambda n: fits(_of_length(engine, n)), longest)
    return replace(sizing.memory(), largest=Largest(batch, length))


def _of_length(engine: EngineOptions, length: int) -> EngineOptions:
    return replace(engine, max_seq_len=length, max_input_len=min(engine.max_input_len, length))


def ways_to_fit(sizing: Sizing, memory: Memory) -> list[str]:
    """Name the changes with which a run that is too large would fit, one of each kind."""
    engine, known = sizing.config.engine, sizing.rejections()

    def fitting(options: Iterator[tuple[str, EngineOptions]]) -> list[str]:
        return [name for name, changed in options if sizing.fits(changed, known)][:1]

    if engine.gpu is None:
        return []
    more = ((f"tp_size: {n}", replace(engine, tp_size=n)) for n in _RANKS if n > engine.tp_size)
    found = fitting(more)
    if engine.quantization == "none":
        found += fitting((f"quantization: {q}", replace(engine, quantization=q)) for q in _SMALLER)
    limits = memory.largest or Largest(0, 0)
    if limits.batch_size:
        found.append(f"max_batch_size: {limits.batch_size}")
    if limits.seq_len > engine.max_input_len:
        found.append(f"max_seq_len: {limits.seq_len}")
    return [f"engine.{way}" for way in found]
