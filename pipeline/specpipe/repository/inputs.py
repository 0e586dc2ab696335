"""What a repository is made of: the run, its engines and its tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from specpipe.config.run_config import RunConfig
from specpipe.config.speculation import DraftModel
from specpipe.core.contracts import Role
from specpipe.core.endpoint import Endpoint
from specpipe.engine.backend import BuildRequest
from specpipe.plan.memory import KvBudget
from specpipe.repository.description import describe_run
from specpipe.repository.placement import ENGINE_MODELS, Placement, place
from specpipe.repository.signature import NEWEST, table_of
from specpipe.runtime.assembly import describe_endpoint


@dataclass(frozen=True)
class RepositoryPlan:
    """The inputs of a repository."""

    config: RunConfig
    engines: Mapping[Role, Path]
    tokenizer: Path | None  # None: not on this disk; upstream's model loads its own
    requests: Mapping[Role, BuildRequest] = field(default_factory=dict)
    release: str = ""  # of TensorRT-LLM; empty for other backends
    home: Path = Path()  # path of the repository on the server
    budgets: Mapping[Role, KvBudget] = field(default_factory=dict)  # as far as they are known
    key: str = ""  # of the repository's manifest, by which a server names what it serves

    @property
    def drives_engines(self) -> bool:
        """Whether the text models call the engines through Triton (BLS)."""
        return drives_engines(self.config)

    @property
    def serves_sources(self) -> bool:
        """Whether upstream's LLM API serves the model, without engines of specpipe."""
        return self.config.engine.traits.serves_sources

    @property
    def drafts(self) -> bool:
        """Whether specpipe's text models run the loop over draft and target."""
        return self.drives_engines and isinstance(self.config.speculation, DraftModel)

    @property
    def table(self) -> str:
        """The name of upstream's table of tensors."""
        return table_of(self.release) if self.release else NEWEST

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint of the server of this repository."""
        return describe_run(self.config, self.tokenizer)

    @property
    def guides(self) -> bool:
        """Whether the text models take guides."""
        return bool(describe_endpoint(self.config).text.tensors.guide_kind)

    @property
    def ranks(self) -> dict[Role, int]:
        """Count the GPUs of every engine."""
        return {role: r.engine.parallel.world_size for role, r in self.requests.items()}

    @property
    def placement(self) -> Placement:
        """How to start the server of TensorRT-LLM engines; the LLM API starts its own ranks."""
        if self.serves_sources:
            gpus = max(self.ranks.values())
            return Placement((ENGINE_MODELS["target"],), 1, gpus, False, True, self.release)
        return place(self.ranks, spawns=self.config.serving.spawn_processes, release=self.release)


def drives_engines(config: RunConfig) -> bool:
    """Tell whether the text models of a run call its engines through Triton (BLS)."""
    return config.engine.traits.upstream_engines or config.serving.loop == "bls"
