"""The interface of building: requests to a backend, and what it returns for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from specpipe.core.contracts import LoadedEngine, Role
from specpipe.core.endpoint import Endpoint, Serving
from specpipe.core.model import Dtype, ModelConfig

Quantization = Literal["none", "int8", "int4", "fp8", "int4_awq", "int8_sq", "nvfp4"]
CacheQuantization = Literal["none", "int8", "fp8"]


@dataclass(frozen=True)
class Rejection:
    """One reason why something cannot be done, and what to change."""

    reason: str
    hint: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.hint}"


@dataclass(frozen=True)
class Parallel:
    """How one model is spread over GPUs: every layer over `tp_size`, the layers over `pp_size`.

    Of the `tp_size` ranks, groups of `moe_ep_size` share out the experts. The embedding is on every
    rank unless `use_parallel_embedding` cuts it, along the vocabulary (0) or the hidden size (1).
    """

    tp_size: int = 1
    pp_size: int = 1
    moe_ep_size: int = 1
    use_parallel_embedding: bool = False
    embedding_sharding_dim: int = 0

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.tp_size * self.pp_size

    @property
    def moe_tp_size(self) -> int:
        """Over how many ranks each expert is spread."""
        return self.tp_size // self.moe_ep_size


ONE_RANK = Parallel()


@dataclass(frozen=True)
class BuildRequest:
    """Everything that a backend receives to check and to build one engine."""

    role: Role
    model: ModelConfig
    dtype: Dtype
    quantization: str
    method: str
    draft_nodes: int
    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    gpu: str | None = None
    parallel: Parallel = ONE_RANK
    kv_cache_quantization: str = "none"
    sm: int | None = None  # compute capability of `gpu`, without the dot; None: not known
    release: str | None = None  # of TensorRT-LLM; None: the default one
    sources: Mapping[Role, str] = field(default_factory=dict)  # the Hugging Face models
    revisions: Mapping[Role, str] = field(default_factory=dict)  # of those for which one is given
    ngram_size: int = 0  # longest match that prompt lookup tries
    max_concurrency: int | None = None  # with more sequences, nothing is drafted
    draft_vocab_size: int = 0  # Medusa heads draft only the first N tokens; 0: all
    streams: bool = True  # whether answers are served piece by piece
    kv_cache_tokens: int = 0  # tokens of all sequences in the KV cache; 0: all at their longest
    prefix_cache: bool = True  # whether the rows of known prefixes are found again
    batch_invariant: bool = False  # whether rows must not depend on the other rows of a call


@dataclass(frozen=True)
class Footprint:
    """What a served engine takes on each of its GPUs, or on the CPU; in bytes."""

    weights: int  # of the fullest rank, heads included
    kv_per_token: int  # a token of one sequence in the KV cache
    kv_tokens: int  # tokens for which there must be room: every sequence at its longest
    activations: int  # work buffers of the largest step
    runtime: int  # libraries, contexts, communication
    looked_up: int = 0  # share of the weights from which steps only look up rows
    drafter: int = 0  # share that is read only to draft tokens

    @property
    def fixed(self) -> int:
        """All but the KV cache."""
        return self.weights + self.activations + self.runtime

    @property
    def total(self) -> int:
        """The sum, with the KV cache of the configured limits."""
        return self.fixed + self.kv_per_token * self.kv_tokens


@dataclass(frozen=True)
class Command:
    """A program that build would run, as an argument list."""

    stage: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)

    def options(self) -> dict[str, str]:
        """Return the values of the `--flags`; a flag without a value has the empty one."""
        found: dict[str, str] = {}
        for word, after in zip(self.argv, (*self.argv[1:], "--"), strict=True):
            if word.startswith("--"):
                found[word] = "" if after.startswith("--") else after
        return found


Facts = Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class Workshop:
    """How a backend may work: whom it tells what it does, and where its programs run."""

    notify: Callable[[str], None] = lambda text: None
    runtime: str | None = None  # docker, podman: in the container of the release; None: here


HERE = Workshop()


class Backend(Protocol):
    """Turns TensorRT-LLM checkpoints into engines for one kind of machine."""

    @property
    def whole_heads(self) -> bool:
        """Whether checkpoints hold Medusa heads in full, in TensorRT-LLM's layout."""
        ...

    @property
    def serves_sources(self) -> bool:
        """Whether Hugging Face models are served as they are: none is converted, and of a run only
        the target is built, which knows its draft.
        """
        ...

    def check(self, request: BuildRequest) -> list[Rejection]:
        """Return every reason why `request` cannot be built; empty means that it can."""
        ...

    def versions(self, release: str | None = None) -> Mapping[str, str]:
        """Name what the engine's bytes depend on besides its inputs (library versions).

        `release` picks one of several, as `BuildRequest.release` does.
        """
        ...

    def build(
        self, request: BuildRequest, checkpoint: Path, out: Path, shop: Workshop = HERE
    ) -> Facts:
        """Compile `checkpoint` into the empty folder `out`; return what its manifest remembers.

        Logs and caches may lie next to `out`. Raises Unsupported if this machine cannot do it,
        StageFailed if it began and did not succeed.
        """
        ...

    def commands(self, request: BuildRequest, checkpoint: Path, out: Path) -> list[Command]:
        """Return the programs that `build` would start; empty if it runs in this process."""
        ...

    def files(self, request: BuildRequest) -> Mapping[str, str]:
        """Return the text files that `build` would write, where they are known beforehand."""
        ...

    def footprint(self, request: BuildRequest) -> Footprint:
        """Estimate what the served engine takes."""
        ...

    def endpoint(self, serving: Serving) -> Endpoint:
        """Return how a run is served and called."""
        ...

    def load(self, engine: Path) -> LoadedEngine:
        """Open a built engine; only where it can be driven from here."""
        ...
