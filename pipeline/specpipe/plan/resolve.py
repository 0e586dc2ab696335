"""Finds a run's models and drafters, on disk or, for planning, among the well-known ones."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from specpipe.checkpoint.convert import read_model
from specpipe.checkpoint.drafter import DrafterSource
from specpipe.checkpoint.eagle import known_eagle, open_eagle
from specpipe.checkpoint.families import FAMILIES, HfConfig, find_family
from specpipe.checkpoint.families.hf import rms_decoder
from specpipe.checkpoint.families.kinds import require_kinds
from specpipe.checkpoint.finding import find_source, in_cache, named_by
from specpipe.checkpoint.medusa import HeadsSource, known_heads, open_heads
from specpipe.checkpoint.redrafter import open_redrafter, trained_redrafter
from specpipe.checkpoint.source import Source, known_model
from specpipe.config.run_config import RunConfig, find_file, require_file
from specpipe.config.speculation import Eagle, ReDrafter, redrafter_of
from specpipe.core.backend import Backend
from specpipe.core.contracts import Role
from specpipe.core.errors import ConfigError
from specpipe.core.model import ModelConfig
from specpipe.runtime.assembly import load_backend


@dataclass(frozen=True)
class Resolved:
    """The models, heads and drafters that a plan is computed from."""

    sources: Mapping[Role, Source | None]  # None: well-known, and not on disk
    models: Mapping[Role, ModelConfig]  # with their heads or drafters
    drafters: Mapping[Role, DrafterSource]
    outlined: bool = False  # an architecture is unknown here, so no sizes follow from it
    next_token_layers: int = 0  # layers for multi-token prediction that the target has
    notes: tuple[str, ...] = ()


def resolve(config: RunConfig, backend: Backend) -> Resolved:
    """Find the models of a run and their facts; reads no weights.

    Raises ConfigError if one cannot be found, Unsupported if its architecture is unknown and it
    would have to be converted.
    """
    sources = {role: _source(config, role) for role in config.models()}
    facts = {role: _facts(config, role, source) for role, source in sources.items()}
    known = all(_architecture(f) in FAMILIES for f in facts.values())
    outlined = backend.serves_sources and not known
    models = {
        role: _outline(facts[role], config) if outlined else _model(config, source, facts[role])
        for role, source in sources.items()
    }
    found = {role: _drafter(config, role, models[role], sources[role]) for role in sources}
    drafters = {role: own for role, own in found.items() if own}
    models |= {role: own.joined(models[role]) for role, own in drafters.items()}
    return Resolved(
        sources,
        models,
        drafters,
        outlined,
        int(facts["target"].get("num_nextn_predict_layers") or 0),
        (*_absent_models(config, sources), *_absent_drafters(config, drafters)),
    )


def _absent_models(config: RunConfig, sources: Mapping[Role, Source | None]) -> Iterator[str]:
    for role, source in sources.items():
        if source is None:
            model = config.models()[role]
            yield f"{model} is not downloaded; the plan uses specpipe's built-in table"


def _absent_drafters(config: RunConfig, drafters: Mapping[Role, DrafterSource]) -> Iterator[str]:
    for role, own in drafters.items():
        if not own.weights:
            yield f"{config.drafter_key(role)} {own.path} is not there: planned as {own.summary}"


def _source(config: RunConfig, role: Role) -> Source | None:
    model = config.models()[role]
    here = find_file(model, config) is not None or in_cache(config, role)
    if not here and known_model(model) is not None:
        return None
    return find_source(config, role)


def _facts(config: RunConfig, role: Role, source: Source | None) -> HfConfig:
    if source is None:
        return known_model(config.models()[role]) or {}
    require_kinds(source.hf_config, source.path)
    return source.hf_config


def _architecture(facts: HfConfig) -> str:
    return str((facts.get("architectures") or ["(none named)"])[0])


def _model(config: RunConfig, source: Source | None, facts: HfConfig) -> ModelConfig:
    if source is not None:
        return read_model(source, config.engine.dtype)
    return find_family(facts).read_config(facts, config.engine.dtype)


def _outline(facts: HfConfig, config: RunConfig) -> ModelConfig:
    """Return the facts that most architectures spell alike, enough to refuse impossible cuts."""
    return rms_decoder(facts, config.engine.dtype, _architecture(facts))


def _drafter(
    config: RunConfig, role: Role, model: ModelConfig, source: Source | None
) -> DrafterSource | None:
    """Find a model's heads or drafter; they may be absent if the model is not on disk."""
    name = config.drafter(role)
    if name is None or source is not None or find_file(name, config) is not None:
        return resolve_drafter(config, role)
    if (beams := _beams(config)) is not None:
        return trained_redrafter(Path(name), model, beams, _release(config))
    if isinstance(config.speculation, Eagle):
        return known_drafter(config, name) or resolve_drafter(config, role)
    return known_drafter(config, name) or _trained_heads(config, name, model)


def known_drafter(config: RunConfig, name: str) -> DrafterSource | None:
    """Return the facts of well-known heads or a drafter of the run's method; None of others."""
    options = config.speculation
    if isinstance(options, Eagle):
        return known_eagle(name, options, config.engine.dtype)
    heads = known_heads(name)
    return _in_layout(config, heads) if heads else None


def _trained_heads(config: RunConfig, name: str, model: ModelConfig) -> HeadsSource:
    """Return heads as `specpipe train medusa` would make them."""
    made = config.train.medusa
    heads = HeadsSource(
        Path(name),
        weights=(),
        names={},
        num_heads=made.num_heads,
        num_layers=made.num_layers,
        hidden_size=model.hidden_size,
        shares_output=made.share_output,
        accuracy=None,
    )
    return _in_layout(config, heads)


def resolve_drafter(config: RunConfig, role: Role) -> DrafterSource | None:
    """Find a model's heads or drafter; raises ConfigError if they are not at the run's path."""
    path = config.drafter(role)
    if path is None:
        return None
    try:
        file = require_file(path, config, config.drafter_key(role))
    except ConfigError as error:
        if known_drafter(config, path) is None:
            raise
        raise ConfigError(str(error), hint=f"download {path} and give its folder") from error
    with named_by(config, config.drafter_key(role)):
        if (beams := _beams(config)) is not None:
            return open_redrafter(file, beams, _release(config))
        if isinstance(config.speculation, Eagle):
            return open_eagle(file, config.speculation, config.engine.dtype)
        return _in_layout(config, open_heads(file))


def _beams(config: RunConfig) -> ReDrafter | None:
    """Return the options of the run's ReDrafter; None if it has none."""
    options = config.speculation
    if isinstance(options, ReDrafter):
        return options
    drafter = redrafter_of(options)
    return ReDrafter("redrafter", **asdict(drafter)) if drafter else None


def _in_layout(config: RunConfig, heads: HeadsSource) -> HeadsSource:
    whole = load_backend(config.engine.backend).whole_heads
    return heads.in_full(config.speculation.num_draft_tokens) if whole else heads


def _release(config: RunConfig) -> str:
    """Return the release of TensorRT-LLM that a run is for; empty if the backend has none."""
    backend = load_backend(config.engine.backend)
    return backend.versions(config.engine.tensorrt_llm).get("tensorrt_llm", "")
