"""Finds the models of a run: a folder, a .gguf file, or the cache of the Hugging Face hub."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from specpipe.checkpoint.hub import (
    cache_folder,
    explained,
    fetch_weights,
    find_snapshot,
    is_cached,
)
from specpipe.checkpoint.source import Source, open_source
from specpipe.config.files import find_file
from specpipe.config.run_config import RunConfig
from specpipe.core.contracts import Role
from specpipe.core.errors import ConfigError, Unsupported

_GIB = 2**30


def find_source(config: RunConfig, role: Role) -> Source:
    """Find a model of the run; of one on the hub fetch what a plan reads, and no weights.

    Raises ConfigError, in one sentence, if it is not there.
    """
    model, place = config.models()[role], _place(config, role)
    path = find_file(model, config)
    if path is not None:
        _refuse_revision(config, role)
        with named_by(config, config.model_key(role)):
            return open_source(path)
    if not is_hub_id(model):
        raise ConfigError(f"{place}: no such folder or file", hint=_where_from(model))
    with explained(place):
        return find_snapshot(model, config.revision(role))


def fetch_source(config: RunConfig, role: Role, notify: Callable[[str], None]) -> Source:
    """Find a model of the run with its weights; fetch those that are not on this disk.

    Raises what `find_source` raises.
    """
    return with_weights(config, role, find_source(config, role), notify)


def with_weights(
    config: RunConfig, role: Role, source: Source, notify: Callable[[str], None]
) -> Source:
    """Return a source that was found, with its weights; fetch those that are not on this disk.

    Raises ConfigError, in one sentence, if they cannot be fetched.
    """
    if source.origin is None or not source.missing:
        return source
    origin = source.origin
    notify(f"fetching {origin.model} at {origin.commit[:12]}: {describe_files(origin.missing)}")
    with explained(_place(config, role)):
        fetch_weights(origin, source.path)
    return replace(open_source(source.path), origin=replace(origin, missing={}))


@contextmanager
def named_by(config: RunConfig, key: str) -> Iterator[None]:
    """Begin a ConfigError about a path, or Unsupported, with the line and the key that name it."""
    try:
        yield
    except (ConfigError, Unsupported) as error:
        place = config.places.get(key, config.path)
        raise type(error)(f"{place}: '{key}': {error.message}", hint=error.hint) from error


def in_cache(config: RunConfig, role: Role) -> bool:
    """Tell whether a model of the run is an id of the hub whose files are all in the cache."""
    model = config.models()[role]
    return is_hub_id(model) and is_cached(model, config.revision(role))


def is_hub_id(model: str) -> bool:
    """Tell whether a model can be an id of the hub, owner/name, by the hub's own rules."""
    part = r"[A-Za-z0-9]([\w.-]*\w)?"
    if ".." in model or "--" in model or len(model) > 96:
        return False
    return re.fullmatch(f"{part}/{part}", model, re.ASCII) is not None


def describe_files(files: Mapping[str, int | None]) -> str:
    """Count files and their bytes: what is, or would be, fetched and where to."""
    count = f"{len(files)} file{'s' * (len(files) != 1)}"
    sizes = [size for size in files.values() if size is not None]
    known = f", {sum(sizes) / _GIB:.2f} GiB" if len(sizes) == len(files) else ""
    return f"{count}{known}, into {cache_folder()}"


def _place(config: RunConfig, role: Role) -> str:
    key = config.model_key(role)
    return f"{config.places.get(key, config.path)}: '{key}' is {config.models()[role]!r}"


def _refuse_revision(config: RunConfig, role: Role) -> None:
    if revision := config.revision(role):
        key = config.revision_key(role)
        raise ConfigError(
            f"{config.places.get(key, config.path)}: '{key}' is {revision!r}, but "
            f"{config.models()[role]} is a local path, which has no revisions",
            hint=f"remove the key, or set {config.model_key(role)} to a Hugging Face id",
        )


def _where_from(model: str) -> str:
    if ".cache/specpipe/models/" in model:
        return "run `scripts/fetch-model` (and `scripts/prune-draft` for the pruned one)"
    return (
        "give a folder, a .gguf file or a Hugging Face id (owner/name); paths are relative to the "
        "working directory or to the config file"
    )
