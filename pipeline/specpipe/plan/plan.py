"""The plan of a run: engines, memory, commands, and every reason why it cannot be built."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from specpipe.building import BuildRequest, Command, Rejection
from specpipe.config import RunConfig, find_file
from specpipe.contracts import Role
from specpipe.methods import Eagle3, Hybrid, Medusa, PromptLookup
from specpipe.model import ModelConfig
from specpipe.plan.gpus import find_gpu
from specpipe.plan.memory import Memory
from specpipe.plan.roofline import Estimate
from specpipe.trees import depth


@dataclass(frozen=True)
class Download:
    """What `build` fetches from the Hugging Face hub before it can convert a model."""

    model: str
    commit: str
    files: Mapping[str, int | None]  # bytes; None: not known, for the hub does not answer


@dataclass(frozen=True)
class Plan:
    """Everything that `build` would do; the config has what was left to the plan filled in."""

    config: RunConfig
    models: Mapping[Role, ModelConfig]  # none if an architecture is not known here
    requests: Mapping[Role, BuildRequest]  # of the engines that are built
    memory: Memory | None  # None: the GPU or the model is not known
    commands: tuple[Command, ...]
    versions: Mapping[str, str]
    rejections: tuple[Rejection, ...]  # this can never work as configured
    gaps: tuple[Rejection, ...]  # this could work, but not with this release of specpipe
    notes: tuple[str, ...] = ()  # what is worth knowing, and hinders nothing
    estimate: Estimate | None = None  # step times, on a known GPU
    files: Mapping[str, str] = field(default_factory=dict)  # path -> text that is known beforehand
    baseline: "Plan | None" = None  # of the plain run that `validate.baseline: build` asks for
    downloads: Mapping[Role, Download] = field(default_factory=dict)  # none if all is on this disk


def make_requests(
    config: RunConfig, models: Mapping[Role, ModelConfig]
) -> dict[Role, BuildRequest]:
    """Return one build request for each model of the run."""
    engine, speculation = config.engine, config.speculation
    gpu = find_gpu(engine.gpu) if engine.gpu else None
    return {
        role: BuildRequest(
            role=role,
            model=model,
            dtype=engine.dtype,
            quantization=engine.quantization,
            method=speculation.method,
            draft_nodes=speculation.num_draft_tokens,
            max_batch_size=engine.max_batch_size,
            max_input_len=engine.max_input_len,
            max_seq_len=engine.max_seq_len,
            gpu=engine.gpu,
            parallel=engine.parallel,
            kv_cache_quantization=engine.kv_cache_quantization,
            sm=gpu.sm if gpu else None,
            release=engine.tensorrt_llm,
            sources=_sources(config),
            revisions=_revisions(config),
            ngram_size=speculation.max_matching_ngram_size
            if isinstance(speculation, PromptLookup)
            else 0,
            max_concurrency=speculation.max_concurrency,
            guess_vocabulary=_guess_vocabulary(config, role),
            streams=config.serving.decoupled,
        )
        for role, model in models.items()
    }


def _sources(config: RunConfig) -> dict[Role, str]:
    """Return where the models are; a Hugging Face id stays one unless there is such a folder."""
    options, named = config.speculation, config.models()
    if isinstance(options, Eagle3):
        named["draft"] = options.draft.model
    return {role: str(find_file(model, config) or model) for role, model in named.items()}


def _revisions(config: RunConfig) -> dict[Role, str]:
    roles: tuple[Role, ...] = ("target", "draft")
    return {role: revision for role in roles if (revision := config.revision(role))}


def _guess_vocabulary(config: RunConfig, role: Role) -> int:
    options = config.speculation
    if role == "target" and isinstance(options, Medusa | Hybrid):
        return options.guess_vocabulary or 0
    return 0


def check_models(requests: Mapping[Role, BuildRequest]) -> list[Rejection]:
    """Return what is wrong with the models for the asked lengths."""
    found = []
    for role, request in requests.items():
        longest = request.model.max_position_embeddings
        if request.max_seq_len > longest:
            found.append(
                Rejection(
                    f"engine.max_seq_len is {request.max_seq_len}, but the {role} was made for "
                    f"{longest} positions",
                    f"set engine.max_seq_len to {longest} or less",
                )
            )
    return found


def check_tree(config: RunConfig, target: ModelConfig) -> list[Rejection]:
    """Return what is wrong with the listed tree of a run for the Medusa heads of its target."""
    tree = config.speculation.tree if isinstance(config.speculation, Medusa | Hybrid) else ""
    deepest = 0 if isinstance(tree, str) else depth(tree)
    if deepest <= target.num_medusa_heads:
        return []
    return [
        Rejection(
            f"speculation.tree is {deepest} levels deep, but there are "
            f"{target.num_medusa_heads} heads, and each guesses one level",
            f"shorten the paths to {target.num_medusa_heads}, or set tree: auto",
        )
    ]


def check_draft_length(config: RunConfig) -> list[Rejection]:
    """Refuse a step that is as long as the longest sequence, now that its tree is complete."""
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
    """Say if the deployment does not fit; `ways` are changes with which it does."""
    if memory.fits:
        return []
    gpu = config.engine.gpu
    where = f"each {gpu}" if gpu else "this machine"
    parts = ", ".join(f"{role} {size / 2**30:.1f}" for role, size in memory.needed.items())
    these = "each of these fits" if len(ways) > 1 else "this fits"
    narrow = ", of which caches take nine tenths at most" if memory.total <= memory.usable else ""
    larger = "take larger GPUs" if gpu else "take a machine with more memory"
    return [
        Rejection(
            f"the engines need {memory.total / 2**30:.1f} GiB on {where} ({parts}; KV caches are "
            f"{memory.caches / 2**30:.1f} of it), {memory.usable / 2**30:.1f} GiB can be "
            f"used{narrow}",
            f"{these}: {'; '.join(ways)}" if ways else f"{larger}, or a smaller model",
        )
    ]
