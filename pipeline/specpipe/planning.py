"""`specpipe plan`: read the models' facts, ask the backend, collect every refusal."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace

from specpipe.artifacts import Workspace
from specpipe.assembly import load_backend
from specpipe.checkpoint.convert import read_model
from specpipe.checkpoint.families import find_family
from specpipe.checkpoint.medusa import HeadsSource, open_heads, with_heads
from specpipe.checkpoint.quantize import check_calibration, check_quantization
from specpipe.checkpoint.source import Source, known_model, locate_model, open_source
from specpipe.checkpoint.tokenizer import read_vocabulary, special_ids
from specpipe.config import RunConfig, find_file, require_file
from specpipe.contracts import Backend, BuildRequest, Command, ModelConfig, Rejection, Role
from specpipe.errors import Unsupported
from specpipe.methods import Hybrid, Medusa
from specpipe.plan.compatibility import Difference, Vocabulary, differences, notes, refusals
from specpipe.plan.gpus import Gpu, find_gpu, unknown_gpu
from specpipe.plan.memory import Memory
from specpipe.plan.options import check_options
from specpipe.plan.outlook import engine_notes, outlook
from specpipe.plan.plan import (
    Plan,
    check_heads,
    check_memory,
    check_models,
    make_requests,
)
from specpipe.plan.sizing import Sizing, choose_ranks, measure, ways_to_fit
from specpipe.trees import assumed_accuracy, grow_tree

KEYS: dict[Role, str] = {"target": "target.model", "draft": "speculation.draft.model"}
HEADS_KEYS: dict[Role, str] = {"target": "speculation.heads", "draft": "speculation.draft.heads"}


def make_plan(config: RunConfig, workspace: Workspace) -> Plan:
    """Return what `build` would do and why it may not; reads no weights, needs no GPU.

    The plan's config has a tree in the place of `tree: auto`, and the tensor-parallel ranks that
    were chosen if none were given. Raises ConfigError if a model cannot be found, Unsupported if
    its architecture is unknown.
    """
    sources = {role: _source(config, role) for role in config.models()}
    all_heads = {role: one for role in sources if (one := locate_heads(config, role))}
    heads = all_heads.get("target")
    config = plan_tree(config, heads)
    models = {role: _model(config, role, source) for role, source in sources.items()}
    models |= {role: with_heads(models[role], own) for role, own in all_heads.items()}
    backend = load_backend(config.engine.backend)
    gpu = find_gpu(config.engine.gpu) if config.engine.gpu else None
    sizing = Sizing(config, models, backend, _memory_of(gpu))
    config = _with_ranks(config, sizing, gpu)
    sizing = sizing.with_engine(config.engine)
    requests = make_requests(config, models)
    memory = None if config.engine.gpu and gpu is None else measure(sizing)
    found, own_loop = _compare_draft(sources, models), config.engine.backend == "openvino"
    rejections = [
        *(r for request in requests.values() for r in backend.check(request)),
        *check_models(requests),
        *(
            rejection
            for role, source in sources.items()
            for rejection in check_quantization(config.engine, models[role], source)
        ),
        *(
            reason
            for role, own in all_heads.items()
            for reason in check_heads(config, role, models[role], own.hidden_size)
        ),
        *refusals(found, own_loop=own_loop),
        *check_options(config),
        *_check_memory(memory, sizing),
        *([unknown_gpu(config.engine.gpu)] if config.engine.gpu and gpu is None else []),
    ]
    return Plan(
        config,
        requests,
        memory,
        tuple(_commands(backend, requests, workspace)),
        backend.versions(config.engine.tensorrt_llm),
        tuple(dict.fromkeys(rejections)),
        (*_gaps(config), *check_calibration(config.engine, sources.values())),
        (*notes(found, own_loop=own_loop), *engine_notes(config, gpu)),
        outlook(config, requests, memory.footprints, gpu, heads.accuracy if heads else None)
        if gpu and memory
        else None,
    )


def _with_ranks(config: RunConfig, sizing: Sizing, gpu: Gpu | None) -> RunConfig:
    """Choose the tensor-parallel ranks if none were given; one where the GPU is not known."""
    if config.engine.tp_size:
        return config
    ranks = choose_ranks(sizing) if gpu else 1
    return replace(config, engine=replace(config.engine, tp_size=ranks))


def _commands(
    backend: Backend, requests: Mapping[Role, BuildRequest], workspace: Workspace
) -> Iterator[Command]:
    for role, request in requests.items():
        yield from backend.commands(request, workspace.checkpoint(role), workspace.engine(role))


def _memory_of(gpu: Gpu | None) -> int:
    """Return the memory of a GPU, or of this machine, in bytes."""
    return gpu.memory_bytes if gpu else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_memory(memory: Memory | None, sizing: Sizing) -> list[Rejection]:
    if memory is None or memory.fits:
        return []
    return check_memory(memory, sizing.config, ways_to_fit(sizing, memory))


def locate_heads(config: RunConfig, role: Role) -> HeadsSource | None:
    """Find a model's Medusa heads; raises ConfigError if there are none where the run says."""
    path = config.heads(role)
    if path is None:
        return None
    heads = open_heads(require_file(path, config, HEADS_KEYS[role]))
    whole = load_backend(config.engine.backend).whole_heads
    return heads.in_full(config.speculation.num_draft_tokens) if whole else heads


def plan_tree(config: RunConfig, heads: HeadsSource | None) -> RunConfig:
    """Replace `tree: auto` by the best tree for the heads' calibration, or for usual heads."""
    options = config.speculation
    if heads is None or not isinstance(options, Medusa | Hybrid) or options.tree != "auto":
        return config
    accuracy = heads.accuracy or assumed_accuracy(heads.num_heads)
    tree = grow_tree(accuracy, options.num_draft_tokens)
    return replace(config, speculation=replace(options, tree=tree, num_draft_tokens=len(tree)))


def require_buildable(plan: Plan) -> None:
    """Raise Unsupported with every reason if the plan cannot be built."""
    reasons = [*plan.rejections, *plan.gaps]
    if reasons:
        listed = "\n".join(f"  - {reason}" for reason in reasons)
        raise Unsupported(f"{plan.config.path}: this run cannot be built:\n{listed}")


def _source(config: RunConfig, role: Role) -> Source | None:
    """Find a model on disk; None for a well-known one that is not there."""
    model = config.models()[role]
    if find_file(model, config) is None and known_model(model) is not None:
        return None
    return open_source(locate_model(model, config, KEYS[role]))


def _model(config: RunConfig, role: Role, source: Source | None) -> ModelConfig:
    if source is not None:
        return read_model(source, config.engine.dtype)
    facts = known_model(config.models()[role]) or {}
    return find_family(facts).read_config(facts, config.engine.dtype)


def _compare_draft(
    sources: Mapping[Role, Source | None], models: Mapping[Role, ModelConfig]
) -> list[Difference]:
    """Return what the draft's vocabulary has that the target's has not, and the reverse."""
    if "draft" not in sources:
        return []
    target, draft = (_vocabulary(sources[r], models[r]) for r in ("target", "draft"))
    return differences(target, draft)


def _vocabulary(source: Source | None, model: ModelConfig) -> Vocabulary:
    if source is None:
        return Vocabulary(model.vocab_size)
    return Vocabulary(model.vocab_size, read_vocabulary(source), special_ids(source))


def _gaps(config: RunConfig) -> list[Rejection]:
    """Return what the config may ask for, but this release does not do yet."""
    found = []
    if config.engine.tp_size * config.engine.pp_size > 1:
        found.append(
            Rejection(
                "this release converts checkpoints for one rank",
                "set engine.tp_size and engine.pp_size to 1 to build",
            )
        )
    return found
