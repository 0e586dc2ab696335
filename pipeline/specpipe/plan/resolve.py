"""Finds a run's models and drafters, on disk or, for planning, among the well-known ones."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from specpipe.checkpoint.convert import files_remarks
from specpipe.checkpoint.drafter import DrafterSource
from specpipe.checkpoint.families import HfConfig, read_facts
from specpipe.checkpoint.finding import in_cache, named_by
from specpipe.checkpoint.medusa import HeadsSource
from specpipe.checkpoint.redrafter import trained_redrafter
from specpipe.checkpoint.served import UnconvertedModel, count_of, read_served
from specpipe.checkpoint.source import Source, known_model
from specpipe.config.files import find_file
from specpipe.config.run_config import RunConfig
from specpipe.config.speculation import eagle3_of
from specpipe.config.upstream_methods import Eagle
from specpipe.core.contracts import Role
from specpipe.core.model import ModelConfig
from specpipe.plan.opened import OpenedModels, beams_of, in_layout, known_drafter, release_of


@dataclass(frozen=True)
class Resolved:
    """The models, heads and drafters that a plan is computed from."""

    sources: Mapping[Role, Source | None]  # None: well-known, and not on disk
    models: Mapping[Role, ModelConfig]  # with their heads or drafters
    drafters: Mapping[Role, DrafterSource]
    outlined: bool = False  # an architecture is unknown here, so no sizes follow from it
    next_token_layers: int = 0  # layers for multi-token prediction that the target has
    notes: tuple[str, ...] = ()
    least_bytes: int = 0  # that the weights take at least, of all models whose size is not known


def resolve(config: RunConfig, opened: OpenedModels) -> Resolved:
    """Find the models of a run and their facts; reads no weights.

    Raises ConfigError if one cannot be found, Unsupported if its architecture is unknown and it
    would have to be converted.
    """
    sources = {role: _source(config, role, opened) for role in config.models()}
    read = {role: _read(config, role, source, opened) for role, source in sources.items()}
    models = {role: served.model for role, served in read.items()}
    found = {
        role: opened.drafter(config, role)
        if sources[role]
        else _planned_drafter(config, role, models[role], opened)
        for role in sources
    }
    drafters = {role: own for role, own in found.items() if own}
    models |= {role: own.joined(models[role]) for role, own in drafters.items()}
    return Resolved(
        sources,
        models,
        drafters,
        not all(served.is_known for served in read.values()),
        read["target"].next_token_layers,
        (
            *_absent_models(config, sources),
            *_absent_drafters(config, drafters),
            *_remarks(sources),
        ),
        sum(served.least_bytes for served in read.values()),
    )


def _absent_models(config: RunConfig, sources: Mapping[Role, Source | None]) -> Iterator[str]:
    for role, source in sources.items():
        if source is None:
            model = config.models()[role]
            yield f"{model} is not downloaded; the plan uses specpipe's built-in table"


def _remarks(sources: Mapping[Role, Source | None]) -> Iterator[str]:
    for role, source in sources.items():
        for remark in files_remarks(source) if source else ():
            yield f"{role}: {remark}"


def _absent_drafters(config: RunConfig, drafters: Mapping[Role, DrafterSource]) -> Iterator[str]:
    for role, own in drafters.items():
        if not own.weights:
            yield f"{config.drafter_key(role)} {own.path} is not there: planned as {own.summary}"


def _source(config: RunConfig, role: Role, opened: OpenedModels) -> Source | None:
    model = config.models()[role]
    here = find_file(model, config) is not None or in_cache(config, role)
    if not here and known_model(model) is not None:
        return None
    return opened.source(config, role)


def _read(
    config: RunConfig, role: Role, source: Source | None, opened: OpenedModels
) -> UnconvertedModel:
    """Return the facts of a model, of one that is not on disk from the built-in table.

    The files of one that is converted are compared with its config.json if they are here.

    Raises Unsupported for an architecture that would have to be converted and cannot be.
    """
    name, dtype = config.models()[role], config.engine.dtype
    facts: HfConfig = source.hf_config if source else known_model(name) or {}
    file = source.config_file if source else Path(name)
    if config.engine.traits.serves_sources:
        return read_served(facts, dtype, file, source)
    layers = count_of(facts, "num_nextn_predict_layers")
    if source is None or source.missing:
        return UnconvertedModel(read_facts(facts, dtype, file), True, layers)
    with named_by(config, config.model_key(role)):
        return UnconvertedModel(opened.surveyed(config, role), True, layers)


def _planned_drafter(
    config: RunConfig, role: Role, model: ModelConfig, opened: OpenedModels
) -> DrafterSource | None:
    """Find the heads or the drafter of a model that is not on disk; they may be absent too."""
    name = config.drafter(role)
    if name is None or find_file(name, config) is not None:
        return opened.drafter(config, role)
    if (beams := beams_of(config)) is not None:
        return trained_redrafter(Path(name), model, beams, release_of(config))
    if isinstance(config.speculation, Eagle) or eagle3_of(config.speculation):
        return known_drafter(config, name) or opened.drafter(config, role)
    return known_drafter(config, name) or _trained_heads(config, name, model)


def _trained_heads(config: RunConfig, name: str, model: ModelConfig) -> DrafterSource:
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
    return in_layout(config, heads)
