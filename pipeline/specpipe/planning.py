"""`specpipe plan`: read the models' facts, ask the backend, collect every refusal."""

import os
from collections.abc import Mapping
from dataclasses import replace

from specpipe.artifacts import Workspace
from specpipe.assembly import load_backend
from specpipe.checkpoint.convert import read_model
from specpipe.checkpoint.families import find_family
from specpipe.checkpoint.medusa import HeadsSource, open_heads, with_heads
from specpipe.checkpoint.source import Source, known_model, locate_model, open_source
from specpipe.checkpoint.tokenizer import read_vocabulary, special_ids
from specpipe.config import RunConfig, find_file, require_file
from specpipe.contracts import Backend, BuildRequest, ModelConfig, Rejection, Role
from specpipe.errors import Unsupported
from specpipe.methods import DraftModel, Hybrid, Medusa, PromptLookup
from specpipe.plan.compatibility import Difference, Vocabulary, differences, notes, refusals
from specpipe.plan.plan import (
    Memory,
    Plan,
    check_heads,
    check_memory,
    check_models,
    gpu_memory,
    make_requests,
    unknown_gpu,
)
from specpipe.trees import assumed_accuracy, grow_tree

KEYS: dict[Role, str] = {"target": "target.model", "draft": "speculation.draft.model"}


def make_plan(config: RunConfig, workspace: Workspace) -> Plan:
    """Return what `build` would do and why it may not; reads no weights, needs no GPU.

    The plan's config has a tree in the place of `tree: auto`. Raises ConfigError if a model cannot
    be found, Unsupported if its architecture is unknown.
    """
    sources = {role: _source(config, role) for role in config.models()}
    heads = locate_heads(config)
    config = plan_tree(config, heads)
    models = {role: _model(config, role, source) for role, source in sources.items()}
    if heads is not None:
        models["target"] = with_heads(models["target"], heads)
    requests = make_requests(config, models)
    backend = load_backend(config.engine.backend)
    memory = _memory(config, backend, requests)
    rejections = [r for request in requests.values() for r in backend.check(request)]
    rejections += check_models(requests)
    rejections += [] if heads is None else check_heads(config, models["target"], heads.hidden_size)
    found, own_loop = _compare_draft(sources, models), config.engine.backend == "openvino"
    rejections += refusals(found, own_loop=own_loop)
    rejections += _check_draft_lengths(config)
    rejections += check_memory(memory, config) if memory else []
    if config.engine.gpu is not None and gpu_memory(config.engine.gpu) is None:
        rejections.append(unknown_gpu(config.engine.gpu))
    commands = [
        command
        for role, request in requests.items()
        for command in backend.commands(request, workspace.checkpoint(role), workspace.engine(role))
    ]
    return Plan(
        config,
        requests,
        memory,
        tuple(commands),
        backend.versions(),
        tuple(dict.fromkeys(rejections)),
        tuple(_gaps(config)),
        tuple(notes(found, own_loop=own_loop)),
    )


def locate_heads(config: RunConfig) -> HeadsSource | None:
    """Find the run's Medusa heads; raises ConfigError if there are none where it says."""
    path = config.heads()
    if path is None:
        return None
    heads = open_heads(require_file(path, config, "speculation.heads"))
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


def _check_draft_lengths(config: RunConfig) -> list[Rejection]:
    """Return the options that only a loop of ours can follow, where the backend has its own."""
    options = config.speculation
    if config.engine.backend != "tensorrt":
        return []
    asked = ["max_concurrency"] if options.max_concurrency is not None else []
    if isinstance(options, PromptLookup | DraftModel | Hybrid) and options.draft_length != "fixed":
        asked.append("draft_length")
    return [
        Rejection(
            f"backend tensorrt drafts by its own rules and ignores speculation.{key}",
            "remove the key, or use backend: openvino",
        )
        for key in asked
    ]


def _memory(
    config: RunConfig, backend: Backend, requests: Mapping[Role, BuildRequest]
) -> Memory | None:
    needed = {role: backend.memory_bytes(request) for role, request in requests.items()}
    if config.engine.gpu is None:
        return Memory(needed, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    available = gpu_memory(config.engine.gpu)
    return None if available is None else Memory(needed, available)


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
