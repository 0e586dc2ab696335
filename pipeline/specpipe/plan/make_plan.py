"""`specpipe plan`: read the models' facts, check the backend, collect every refusal."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from specpipe.checkpoint.convert import check_drafter_config
from specpipe.checkpoint.medusa import HeadsSource
from specpipe.checkpoint.quantize import check_calibration, check_quantization
from specpipe.checkpoint.tokenizer import check_tokenizer
from specpipe.config.run_config import RunConfig
from specpipe.config.speculation import Hybrid, Medusa
from specpipe.config.tree import is_open
from specpipe.config.upstream_methods import Eagle
from specpipe.core.artifacts import Workspace
from specpipe.core.contracts import Role
from specpipe.core.errors import Rejection, Unsupported
from specpipe.core.machine import cpu_kinds, memory_bytes
from specpipe.core.trees import assumed_accuracy, chain, grow_tree
from specpipe.engine.backend import Backend, BuildRequest, Command
from specpipe.engine.fronts.table import FRONTS
from specpipe.engine.gpus import Gpu, find_gpu, spelling, unknown_gpu
from specpipe.plan.belonging import find_strangers
from specpipe.plan.compatibility import (
    notes,
    refusals,
)
from specpipe.plan.eagle3 import check_eagle3
from specpipe.plan.gates import check_validation
from specpipe.plan.memory import Memory
from specpipe.plan.opened import OpenedModels
from specpipe.plan.options import check_options
from specpipe.plan.outlook import cpu_notes, outlook
from specpipe.plan.places import kept, occupied, written_places
from specpipe.plan.plan import (
    Download,
    Plan,
    check_draft_length,
    check_memory,
    check_models,
    check_tree,
    make_requests,
)
from specpipe.plan.resolve import Resolved, resolve
from specpipe.plan.sizing import Sizing, choose_ranks, measure, ways_to_fit
from specpipe.plan.temporary import temporary_notes
from specpipe.plan.unknown import check_unknown, unknown_notes
from specpipe.plan.vocabularies import compare_draft
from specpipe.runtime.assembly import describe_endpoint, load_backend


def make_plan(config: RunConfig, workspace: Workspace, opened: OpenedModels | None = None) -> Plan:
    """Return the plan of a run and of its baseline, with every reason for a refusal.

    See `_plan_run`. Prompts and gates that validation cannot use are refused too. `opened` keeps
    the models for the stages that read them after the plan.
    """
    opened = opened or OpenedModels()
    plan = _plan_run(config, workspace, opened)
    refused = [*plan.rejections, *check_validation(config, describe_endpoint(plan.config))]
    if config.validate.baseline != "build":
        return replace(plan, rejections=tuple(refused))
    plain = config.baseline
    baseline = _plan_run(plain, replace(workspace, name=plain.name), opened)
    own = [r for r in baseline.rejections if r not in plan.rejections]
    refused += [Rejection(f"the baseline: {r.reason}", r.hint) for r in own]
    return replace(plan, rejections=tuple(refused), baseline=baseline)


def _plan_run(config: RunConfig, workspace: Workspace, opened: OpenedModels) -> Plan:
    """Return what `build` would do, or why it cannot; reads no weights, needs no GPU.

    In the plan's config, `tree: auto` is replaced by a tree, and a missing `tp_size` by the number
    of ranks that the plan chose. Raises what `resolve` raises.
    """
    backend = load_backend(config.engine.backend)
    traits = config.engine.traits
    found = resolve(config, opened)
    config = plan_tree(_with_gpus_name(config), found, chains=traits.drafts_chains)
    gpu = find_gpu(config.engine.gpu) if config.engine.gpu else None
    unknown = list(check_unknown(config, found, gpu)) if found.outlined else []
    sizing = Sizing(config, found.models, backend, _memory_of(gpu))
    config = _with_ranks(config, sizing, None if found.outlined else gpu)
    sizing = sizing.with_engine(config.engine)
    requests = _with_heads(make_requests(config, found.models), config, found, workspace)
    differing, own_loop = compare_draft(found), traits.own_engine
    strangers = find_strangers(config, found)
    placed = config.engine.gpu is None if own_loop else gpu is not None
    memory = measure(sizing) if placed and not found.outlined else None
    rejections = [
        *unknown,
        *_check_requests(config, requests, backend),
        *_check_parts(config, found),
        *strangers.rejections,
        *refusals(differing, own_loop=own_loop),
        *check_options(config, found.next_token_layers),
        *_check_memory(memory, sizing),
    ]
    built = {r: q for r, q in requests.items() if r == "target" or not traits.serves_sources}
    places = list(written_places(built, workspace))
    rejections += occupied(places)
    commands = tuple(_commands(backend, built, workspace))
    drafter = found.drafters.get("target")
    accuracy = drafter.accuracy if drafter else None
    return Plan(
        config=config,
        models={} if found.outlined else found.models,
        requests=built,
        memory=memory,
        commands=commands,
        versions=_versions(config, backend),
        rejections=tuple(dict.fromkeys(_located(config, rejections))),
        gaps=tuple(check_calibration(config.engine, found.sources.values())),
        notes=(
            *found.notes,
            *(unknown_notes(found) if found.outlined else ()),
            *notes(differing, own_loop=own_loop),
            *strangers.notes,
            *backend.notes(config, found.models, gpu),
            *cpu_notes(config.engine, cpu_kinds()),
            *temporary_notes(Path(tempfile.gettempdir()), on_cpu=own_loop),
            *_length_notes(config, commands),
            *(f"{reason}; build does not replace them" for reason in kept(places, owned=True)),
        ),
        estimate=outlook(config, requests, memory.footprints, gpu, accuracy)
        if gpu and memory
        else None,
        files=dict(_files(backend, built, workspace)),
        downloads={} if traits.serves_sources else dict(_downloads(found)),
    )


def _with_heads(
    requests: Mapping[Role, BuildRequest],
    config: RunConfig,
    found: Resolved,
    workspace: Workspace,
) -> dict[Role, BuildRequest]:
    """Return requests in which the drafter of a target that is served as it is has a folder.

    Medusa heads are converted to one; another drafter's own folder is read as it is.
    """
    own = found.drafters.get("target")
    if own is None or not config.engine.traits.serves_sources:
        return dict(requests)
    heads = isinstance(own, HeadsSource)
    folder = str(workspace.checkpoint("draft").resolve() if heads else own.path)
    return {
        role: replace(request, sources={**request.sources, "draft": folder})
        for role, request in requests.items()
    }


def _versions(config: RunConfig, backend: Backend) -> Mapping[str, str]:
    """Return the versions of the backend, with the image of the run's front."""
    found = backend.versions(config.engine.tensorrt_llm)
    front = FRONTS.get(config.serving.front)
    if front is None or "tensorrt_llm" not in found:
        return found
    return {**found, "container": front.image(found["tensorrt_llm"])}


def _check_requests(
    config: RunConfig, requests: Mapping[Role, BuildRequest], backend: Backend
) -> Iterator[Rejection]:
    """Check every engine, the lengths of the models, and that the GPU is known."""
    for request in requests.values():
        yield from backend.check(request)
    yield from check_models(requests)
    if config.engine.gpu and find_gpu(config.engine.gpu) is None:
        yield unknown_gpu(config.engine.gpu)


def _located(config: RunConfig, rejections: Iterable[Rejection]) -> Iterator[Rejection]:
    """Put file and line before every reason that begins with a key of the config."""
    for rejection in rejections:
        place = config.places.get(rejection.reason.split(maxsplit=1)[0])
        reason = f"{place}: {rejection.reason}" if place else rejection.reason
        yield replace(rejection, reason=reason)


def _check_parts(config: RunConfig, found: Resolved) -> Iterator[Rejection]:
    """Check every model: its number formats, tokenizer, heads or drafter, and the tree."""
    serves_sources = config.engine.traits.serves_sources
    for role, source in found.sources.items():
        if not serves_sources:  # else TensorRT-LLM reads the quantized weights itself
            yield from check_quantization(config.engine, found.models[role], source)
            yield from check_tokenizer(source, found.models[role]) if source else ()
        elif source is not None and source.path.is_file():
            yield Rejection(
                f"{config.engine.traits.title} reads no GGUF files, as {source.path}",
                "give the folder that the file was made from, or use backend: tensorrt or openvino",
            )
    for role, own in found.drafters.items():
        yield from own.check(role, found.models[role])
        target = found.sources[role]
        if target is not None and not serves_sources:
            yield from check_drafter_config(target, found.models[role], own)
    if serves_sources and not found.outlined:
        yield from check_eagle3(config, found.models["target"])
    yield from check_tree(config, found.models["target"])
    yield from check_draft_length(config)


def _with_gpus_name(config: RunConfig) -> RunConfig:
    """Spell the GPU as the table does, so that engines of equal plans are equal."""
    name = spelling(config.engine.gpu) if config.engine.gpu else None
    return replace(config, engine=replace(config.engine, gpu=name))


def _with_ranks(config: RunConfig, sizing: Sizing, gpu: Gpu | None) -> RunConfig:
    """Choose the tensor-parallel ranks if none were given; one rank if the GPU is not known."""
    if config.engine.tp_size:
        return config
    ranks = choose_ranks(sizing) if gpu else 1
    return replace(config, engine=replace(config.engine, tp_size=ranks))


def _commands(
    backend: Backend, requests: Mapping[Role, BuildRequest], workspace: Workspace
) -> Iterator[Command]:
    for role, request in requests.items():
        yield from backend.commands(request, workspace.checkpoint(role), workspace.engine(role))


def _length_notes(config: RunConfig, commands: Sequence[Command]) -> Iterator[str]:
    """Yield why a command has another input length than the config."""
    given = str(config.engine.max_input_len)
    lengths = {command.options().get("--max_input_len", given) for command in commands}
    for length in sorted(lengths - {given}):
        yield (
            f"trtllm-build gets --max_input_len {length}, not the config's {given}: the "
            "draft/target loop calls both engines with the prompt and the output so far, which "
            "can be as long as engine.max_seq_len"
        )


def _files(
    backend: Backend, requests: Mapping[Role, BuildRequest], workspace: Workspace
) -> Iterator[tuple[str, str]]:
    for role, request in requests.items():
        for name, text in backend.files(request).items():
            yield str(workspace.engine(role) / name), text


def _downloads(found: Resolved) -> Iterator[tuple[Role, Download]]:
    for role, source in found.sources.items():
        if source is not None and source.origin is not None and source.missing:
            yield role, Download(source.origin.model, source.origin.commit, source.missing)


def _memory_of(gpu: Gpu | None) -> int:
    """Return the memory of a GPU, or of this machine, in bytes."""
    return gpu.memory_bytes if gpu else memory_bytes()


def _check_memory(memory: Memory | None, sizing: Sizing) -> list[Rejection]:
    if memory is None or memory.fits:
        return []
    return check_memory(memory, sizing.config, ways_to_fit(sizing, memory))


def plan_tree(config: RunConfig, found: Resolved, *, chains: bool = False) -> RunConfig:
    """Replace `tree: auto` with the best tree for the heads' calibration, or for usual heads.

    With `chains` it is replaced with a chain.
    """
    options, heads = config.speculation, found.drafters.get("target")
    if chains and isinstance(options, Eagle) and "speculation.tree" not in config.places:
        return replace(config, speculation=options.with_tree(chain(options.num_eagle_layers)))
    if heads is None or not isinstance(options, Medusa | Hybrid) or not is_open(options):
        return config
    if chains:
        length = min(options.num_draft_tokens, found.models["target"].num_medusa_heads)
        made = replace(options, tree=chain(length), num_draft_tokens=length)
        return replace(config, speculation=made)
    accuracy = heads.accuracy or assumed_accuracy(found.models["target"].num_medusa_heads)
    tree = grow_tree(accuracy, options.num_draft_tokens)
    return replace(config, speculation=replace(options, tree=tree, num_draft_tokens=len(tree)))


def require_buildable(plan: Plan) -> None:
    """Raise Unsupported with every reason if the plan cannot be built."""
    reasons = [*plan.rejections, *plan.gaps]
    if reasons:
        listed = "\n".join(f"  - {reason}" for reason in reasons)
        raise Unsupported(f"{plan.config.path}: this run cannot be built:\n{listed}")
