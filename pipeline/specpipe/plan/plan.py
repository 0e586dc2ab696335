"""The plan of a run: engines, memory, commands, and every reason for a refusal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from specpipe.config.files import find_file
from specpipe.config.run_config import RunConfig
from specpipe.config.speculation import Hybrid, Medusa, WithUpstreamDraft
from specpipe.core.contracts import Role
from specpipe.core.errors import Rejection
from specpipe.core.model import ModelConfig
from specpipe.core.trees import depth
from specpipe.engine.backend import BuildRequest, Command
from specpipe.engine.gpus import find_gpu
from specpipe.plan.memory import Memory
from specpipe.plan.roofline import Estimate


@dataclass(frozen=True)
class Download:
    """The files that `build` downloads from the Hugging Face hub before it converts a model."""

    model: str
    commit: str
    files: Mapping[str, int | None]  # bytes; None: the hub did not answer


@dataclass(frozen=True)
class Plan:
    """Everything that `build` would do. The plan fills in the config's open values."""

    config: RunConfig
    models: Mapping[Role, ModelConfig]  # empty if specpipe does not know an architecture
    requests: Mapping[Role, BuildRequest]  # one for each engine to build
    memory: Memory | None  # None: the GPU or the model is not known
    commands: tuple[Command, ...]
    versions: Mapping[str, str]
    rejections: tuple[Rejection, ...]  # this config can never be built
    gaps: tuple[Rejection, ...]  # this machine lacks something that the build needs
    notes: tuple[str, ...] = ()  # useful to know; they do not prevent a build
    estimate: Estimate | None = None  # step times, on a known GPU
    files: Mapping[str, str] = field(
        default_factory=dict
    )  # path -> text, for files that can be shown before the build
    baseline: "Plan | None" = None  # the run without speculation of `validate.baseline: build`
    downloads: Mapping[Role, Download] = field(
        default_factory=dict
    )  # empty if all files are on this disk


def make_requests(
    config: RunConfig, models: Mapping[Role, ModelConfig]
) -> dict[Role, BuildRequest]:
    """Return one build request for each model of the run."""
    engine = config.engine
    gpu = find_gpu(engine.gpu) if engine.gpu else None
    return {
        role: BuildRequest(
            role,
            model,
            engine,
            config.speculation,
            sm=gpu.sm if gpu else None,
            sources=_sources(config),
            revisions=_revisions(config),
            streams=config.serving.decoupled,
            front=config.serving.front,
        )
        for role, model in models.items()
    }


def _sources(config: RunConfig) -> dict[Role, str]:
    """Return the paths of the models; a Hugging Face id without such a folder stays an id."""
    options, named = config.speculation, config.models()
    if isinstance(options, WithUpstreamDraft):
        named["draft"] = options.draft.model
    return {role: str(find_file(model, config) or model) for role, model in named.items()}


def _revisions(config: RunConfig) -> dict[Role, str]:
    roles: tuple[Role, ...] = ("target", "draft")
    return {role: revision for role in roles if (revision := config.revision(role))}


def check_models(requests: Mapping[Role, BuildRequest]) -> list[Rejection]:
    """Refuse lengths that the models do not support."""
    found = []
    for role, request in requests.items():
        asked, longest = request.engine.max_seq_len, request.model.max_position_embeddings
        if longest and asked > longest:
            found.append(
                Rejection(
                    f"engine.max_seq_len is {asked}, but the {role} supports at most "
                    f"{longest} positions (max_position_embeddings)",
                    f"set engine.max_seq_len to {longest} or less",
                )
            )
    return found


def check_tree(config: RunConfig, target: ModelConfig) -> list[Rejection]:
    """Refuse a listed tree that is deeper than the number of Medusa heads."""
    tree = config.speculation.tree if isinstance(config.speculation, Medusa | Hybrid) else ""
    deepest = 0 if isinstance(tree, str) else depth(tree)
    if deepest <= target.num_medusa_heads:
        return []
    return [
        Rejection(
            f"speculation.tree is {deepest} levels deep, but there are "
            f"{target.num_medusa_heads} heads, and each drafts one level",
            f"shorten the paths to {target.num_medusa_heads}, or set tree: auto",
        )
    ]


def check_draft_length(config: RunConfig) -> list[Rejection]:
    """Refuse a planned tree with which one step is as long as the longest sequence."""
    drafted, longest = config.speculation.num_draft_tokens, config.engine.max_seq_len
    if drafted + 1 < longest:
        return []
    return [
        Rejection(
            f"the planned tree has {drafted} nodes, but engine.max_seq_len is {longest}",
            f"set speculation.num_draft_tokens to {longest - 2} or less, or engine.max_seq_len to "
            f"{drafted + 2} or more",
        )
    ]


def check_memory(memory: Memory, config: RunConfig, ways: Sequence[str]) -> list[Rejection]:
    """Refuse a deployment that does not fit; with each change in `ways` it would fit."""
    if memory.fits:
        return []
    engine, gib = config.engine, 2**30
    where = f"GPU memory on each {engine.gpu}" if engine.gpu else "RAM on this machine"
    parts = ", ".join(f"{role} {size / gib:.1f}" for role, size in memory.needed.items())
    share = "; KV caches can use at most 90% of it after loading"
    limit = share if memory.total <= memory.usable else ""
    these = "make one of these changes" if len(ways) > 1 else "make this change"
    larger = "use larger GPUs" if engine.gpu else "use a machine with more RAM"
    return [
        Rejection(
            f"the engines need {memory.total / gib:.1f} GiB of {where} ({parts}), but "
            f"{memory.usable / gib:.1f} GiB are available{limit}; the KV cache for "
            f"max_batch_size {engine.max_batch_size} x max_seq_len {engine.max_seq_len} takes "
            f"{memory.caches / gib:.1f} GiB of the total",
            f"{these}: {'; '.join(ways)}" if ways else f"{larger}, or a smaller model",
        )
    ]
