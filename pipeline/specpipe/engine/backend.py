"""The interface of building: requests to a backend, and what it returns for them.

The folders next to this file have the backends.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from specpipe.config.run_config import EngineOptions, RunConfig
from specpipe.config.speculation import Hybrid, Medusa, ReDrafter, Speculation
from specpipe.core.contracts import Role
from specpipe.core.endpoint import Endpoint, Serving
from specpipe.core.engines import LoadedEngine
from specpipe.core.errors import Rejection
from specpipe.core.model import ModelConfig
from specpipe.engine.gpus import Gpu


@dataclass(frozen=True)
class BuildRequest:
    """Everything that a backend receives to check and to build one engine."""

    role: Role
    model: ModelConfig
    engine: EngineOptions
    speculation: Speculation  # of the run: the draft's request has it too
    sm: int | None = None  # compute capability of the GPU, without the dot; None: not known
    sources: Mapping[Role, str] = field(default_factory=dict)  # the Hugging Face models
    revisions: Mapping[Role, str] = field(default_factory=dict)  # of those for which one is given
    streams: bool = True  # whether answers are served piece by piece
    front: str = "triton"  # what serves the model, `serving.front`

    @property
    def method(self) -> str:
        """The method of speculation."""
        return self.speculation.method

    @property
    def draft_nodes(self) -> int:
        """Most draft tokens of a step."""
        return self.speculation.num_draft_tokens

    @property
    def draft_vocab_size(self) -> int:
        """How many tokens heads or a ReDrafter in this engine can draft; 0: all."""
        options = self.speculation
        if self.role == "target" and isinstance(options, Medusa | ReDrafter | Hybrid):
            return options.draft_vocab_size or 0
        return 0


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
    """Turns TensorRT-LLM checkpoints into engines for one kind of machine.

    What holds for every run of a backend is in `config.backends.Traits`.
    """

    def check(self, request: BuildRequest) -> list[Rejection]:
        """Return every reason why `request` cannot be built; empty means that it can."""
        ...

    def check_run(self, config: RunConfig) -> Iterator[Rejection]:
        """Yield every option of a run that it ignores or lacks, in addition to `check`."""
        ...

    def notes(
        self, config: RunConfig, models: Mapping[Role, ModelConfig], gpu: Gpu | None
    ) -> Iterator[str]:
        """Yield facts about a run that may surprise but do not forbid it; None: no known GPU."""
        ...

    def versions(self, release: str | None = None) -> Mapping[str, str]:
        """Name what the engine's bytes depend on besides its inputs (library versions).

        `release` picks one of several, as `EngineOptions.tensorrt_llm` does.
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
