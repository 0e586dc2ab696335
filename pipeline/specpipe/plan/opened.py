"""The models and drafters that a command works with: each is opened once."""

from collections.abc import Callable, Hashable
from dataclasses import asdict
from pathlib import Path

from specpipe.checkpoint.convert import survey
from specpipe.checkpoint.drafter import DrafterSource
from specpipe.checkpoint.eagle import known_eagle, open_eagle
from specpipe.checkpoint.eagle3 import open_eagle3
from specpipe.checkpoint.finding import find_source, is_hub_id, named_by, with_weights
from specpipe.checkpoint.medusa import HeadsSource, known_heads, open_heads
from specpipe.checkpoint.redrafter import open_redrafter
from specpipe.checkpoint.source import Source
from specpipe.config.files import require_file
from specpipe.config.run_config import RunConfig
from specpipe.config.speculation import ReDrafter, eagle3_of, redrafter_of
from specpipe.config.upstream_methods import Eagle
from specpipe.core.contracts import Role
from specpipe.core.digests import Stamp, stamp
from specpipe.core.errors import ConfigError
from specpipe.core.model import ModelConfig
from specpipe.runtime.assembly import load_backend

Opening = Callable[..., DrafterSource]


class OpenedModels:
    """The opened models and drafters of a run and of its variants, which name the same files.

    A model is opened again only if its files are no longer those that were found: after a download,
    or when another process has changed them.
    """

    def __init__(self) -> None:
        self._sources: dict[tuple[str, str | None], Source] = {}
        self._surveys: dict[tuple[str | None, ...], tuple[Source, ModelConfig]] = {}
        self._drafters: dict[tuple[Hashable, ...], tuple[DrafterSource, dict[Path, Stamp]]] = {}

    def source(self, config: RunConfig, role: Role) -> Source:
        """Find a model of the run as `find_source` does, and raise what that raises."""
        key = _key(config, role)
        found = self._sources.get(key)
        if found is None or not found.is_current():
            found = self._sources[key] = find_source(config, role)
        return found

    def surveyed(self, config: RunConfig, role: Role) -> ModelConfig:
        """Return the facts of a model whose files are here; raises what `survey` raises."""
        source = self.source(config, role)
        key = (*_key(config, role), config.engine.dtype)
        before, model = self._surveys.get(key, (None, None))
        if model is None or before is not source:
            model = survey(source, config.engine.dtype)
            self._surveys[key] = source, model
        return model

    def fetched(self, config: RunConfig, role: Role, notify: Callable[[str], None]) -> Source:
        """Find a model of the run with its weights; fetch those that are not on this disk."""
        found = with_weights(config, role, self.source(config, role), notify)
        self._sources[_key(config, role)] = found
        return found

    def drafter(self, config: RunConfig, role: Role) -> DrafterSource | None:
        """Find a model's heads or drafter; raises ConfigError if they are not at the run's path."""
        path = config.drafter(role)
        if path is None:
            return None
        file = _require_drafter(config, role, path)
        with named_by(config, config.drafter_key(role)):
            opening, given = _opening(config, file)
            return in_layout(config, self._opened(opening, given))

    def _opened(self, opening: Opening, given: tuple[Hashable, ...]) -> DrafterSource:
        key = (opening, *given)
        found, state = self._drafters.get(key, (None, {}))
        if found is None or _state(found) != state:
            found = opening(*given)
            self._drafters[key] = found, _state(found)
        return found


def known_drafter(config: RunConfig, name: str) -> DrafterSource | None:
    """Return the facts of well-known heads or a drafter of the run's method; None of others."""
    options = config.speculation
    if isinstance(options, Eagle):
        return known_eagle(name, options, config.engine.dtype)
    heads = known_heads(name)
    return in_layout(config, heads) if heads else None


def beams_of(config: RunConfig) -> ReDrafter | None:
    """Return the options of the run's ReDrafter; None if it has none."""
    options = config.speculation
    if isinstance(options, ReDrafter):
        return options
    drafter = redrafter_of(options)
    return ReDrafter("redrafter", **asdict(drafter)) if drafter else None


def in_layout(config: RunConfig, drafter: DrafterSource) -> DrafterSource:
    """Return a drafter as the run's backend reads it: Medusa heads compact or in full."""
    whole = config.engine.traits.whole_heads
    if whole and isinstance(drafter, HeadsSource):
        return drafter.in_full(config.speculation.num_draft_tokens)
    return drafter


def release_of(config: RunConfig) -> str:
    """Return the release of TensorRT-LLM that a run is for; empty if the backend has none."""
    backend = load_backend(config.engine.backend)
    return backend.versions(config.engine.tensorrt_llm).get("tensorrt_llm", "")


def _key(config: RunConfig, role: Role) -> tuple[str, str | None]:
    return config.models()[role], config.revision(role)


def _require_drafter(config: RunConfig, role: Role, path: str) -> Path:
    try:
        return require_file(path, config, config.drafter_key(role))
    except ConfigError as error:
        on_hub = eagle3_of(config.speculation) is not None and is_hub_id(path)
        if known_drafter(config, path) is None and not on_hub:
            raise
        raise ConfigError(error.message, hint=f"download {path} and give its folder") from error


def _opening(config: RunConfig, file: Path) -> tuple[Opening, tuple[Hashable, ...]]:
    """Return the function that opens the run's kind of drafter, and its arguments."""
    if (beams := beams_of(config)) is not None:
        return open_redrafter, (file, beams, release_of(config))
    if isinstance(config.speculation, Eagle):
        return open_eagle, (file, config.speculation, config.engine.dtype)
    if eagle3_of(config.speculation) is not None:
        return open_eagle3, (file, config.engine.dtype)
    return open_heads, (file,)


def _state(drafter: DrafterSource) -> dict[Path, Stamp]:
    return {file: stamp(file) for file in drafter.files() if file.is_file()}
