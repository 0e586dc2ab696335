"""Models on the Hugging Face hub: small files for a plan, weights for the commands that read them.

All requests are huggingface_hub's own, so HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT and HF_HOME mean
what they mean elsewhere, and other tools share the cache. A revision is resolved to a commit when
its weights are not in the cache; from then on the cached commit is used without any request.
"""

import contextlib
import glob
import shutil
from collections.abc import Iterator, Mapping, Set
from fnmatch import fnmatch
from pathlib import Path

from specpipe.checkpoint.source import (
    BEFORE_TOKENIZER_JSON,
    FURTHER_TEMPLATES,
    SMALL_FILES,
    Origin,
    Source,
    open_folder,
)
from specpipe.checkpoint.weight_files import ADAPTER, INDEX, WHOLE, shard_names
from specpipe.core.errors import ConfigError, SpecpipeError, StageFailed

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_CONFIG = "config.json"


def find_snapshot(model: str, revision: str | None) -> Source:
    """Return a model in the cache, with what a plan reads, at the commit that `revision` is.

    The hub is called only if something is missing in the cache; if it does not answer, the cached
    files are used. Raises ConfigError or what huggingface_hub raises.
    """
    cached = _cached(model, revision)
    if cached is not None and _is_whole(cached):
        return _open(model, cached, _weight_names(cached), {})
    try:
        return _look_up(model, revision)
    except Exception as error:  # the hub raises many kinds, and each means that it did not help
        if cached is None or isinstance(error, SpecpipeError) or _is_an_answer(error):
            raise
        return _open(model, cached, _weight_names(cached), {})


def fetch_weights(origin: Origin, folder: Path) -> None:
    """Fetch the missing weights into the cache, with huggingface_hub's progress bars on stderr.

    Raises StageFailed if they do not fit on the disk, and what huggingface_hub raises.
    """
    import huggingface_hub
    from huggingface_hub import errors

    _require_space(origin, folder)
    patterns = [glob.escape(name) for name in origin.missing]
    huggingface_hub.snapshot_download(origin.model, revision=origin.commit, allow_patterns=patterns)
    for name in origin.missing:
        if not (folder / name).is_file():  # offline, some releases return what there is
            raise errors.LocalEntryNotFoundError(name)


def is_cached(model: str, revision: str | None) -> bool:
    """Tell whether a model is in the cache with all that a conversion reads."""
    cached = _cached(model, revision)
    return cached is not None and _is_whole(cached)


def cache_folder() -> Path:
    """Return the folder in which huggingface_hub keeps models."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _cached(model: str, revision: str | None) -> Path | None:
    """Return the folder of the commit that a revision was when it was last asked for."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, _CONFIG, revision=revision or "main")
    return Path(found).parent if isinstance(found, str) else None


def _is_whole(folder: Path) -> bool:
    names = (*_weight_names(folder), _CONFIG)
    tokenizer = any((folder / name).is_file() for name in _TOKENIZERS)
    return tokenizer and all((folder / name).is_file() for name in names)


def _weight_names(folder: Path, sizes: Mapping[str, int | None] | None = None) -> list[str]:
    """Return the files that transformers would read; `sizes` are those that the hub has."""
    index = folder / INDEX
    whole = WHOLE in sizes if sizes is not None else (folder / WHOLE).is_file()
    return [WHOLE] if whole or not index.is_file() else shard_names(index)


def _look_up(model: str, revision: str | None) -> Source:
    """Ask the hub for the commit, fetch the small files, and find out which weights there are."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    facts = api.model_info(model, revision=revision, files_metadata=True)
    _refuse_adapter(model, {file.rfilename for file in facts.siblings or []})
    with _quiet():
        # by the branch's name, so that the cache knows what commit it is
        folder = Path(huggingface_hub.hf_hub_download(model, _CONFIG, revision=revision)).parent
        if facts.sha != folder.name:  # the branch has just moved
            facts = api.model_info(model, revision=folder.name, files_metadata=True)
        sizes = {file.rfilename: file.size for file in facts.siblings or []}
        for name in _wanted(sizes):
            huggingface_hub.hf_hub_download(model, name, revision=folder.name)
    if INDEX not in sizes and WHOLE not in sizes:
        raise ConfigError(
            f"{model} has no safetensors at {folder.name[:12]}, and nothing else is fetched from "
            "the hub",
            hint="download a .gguf file, or convert the model to safetensors, and give its path",
        )
    return _open(model, folder, _weight_names(folder, sizes), sizes)


def _refuse_adapter(model: str, names: Set[str]) -> None:
    if ADAPTER in names and not {WHOLE, INDEX} & names:
        raise ConfigError(
            f"{model} is a PEFT adapter, not a model",
            hint="merge it into its base (peft: `merge_and_unload`), and give the new folder",
        )


def _wanted(names: Mapping[str, int | None]) -> list[str]:
    """Return the files that a plan reads; older forms of a tokenizer only if there is no newer."""
    older = () if "tokenizer.json" in names else BEFORE_TOKENIZER_JSON
    templates = [n for n in names if fnmatch(n, f"{FURTHER_TEMPLATES}/*.jinja")]
    wanted = (*SMALL_FILES, *templates, *older, INDEX)
    return [name for name in wanted if name in names and name != _CONFIG]


def _open(model: str, folder: Path, weights: list[str], sizes: Mapping[str, int | None]) -> Source:
    missing = {name: sizes.get(name) for name in weights if not (folder / name).is_file()}
    origin = Origin(model, folder.name, missing)
    return open_folder(folder, tuple(folder / name for name in weights), origin)


def _require_space(origin: Origin, folder: Path) -> None:
    needed = sum(size or 0 for size in origin.missing.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StageFailed(
            f"{origin.model} needs {needed / 2**30:.1f} GiB in {cache_folder()}, "
            f"{free / 2**30:.1f} GiB are free",
            hint="free some space, or set HF_HOME to a folder on a larger disk",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Show no progress bars for small files."""
    from huggingface_hub import utils

    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _is_an_answer(error: Exception) -> bool:
    """Tell whether the hub refused, so that what is in the cache may not be used in its place."""
    from huggingface_hub import errors

    refusals = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)
    return isinstance(error, refusals)


@contextlib.contextmanager
def explained(place: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence that begins with `place`, and a hint."""
    try:
        yield
    except SpecpipeError:
        raise
    except Exception as error:  # the hub and its HTTP libraries raise many kinds
        problem, hint = _explain(error)
        raise ConfigError(f"{place}: {problem}", hint=hint) from error


def _explain(error: Exception) -> tuple[str, str]:
    """Return what an exception of huggingface_hub means, and a hint."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError):  # a ValueError before huggingface_hub 1
        return _explain_silence(offline=constants.HF_HUB_OFFLINE)
    for kind, problem, hint in _refusals():
        if isinstance(error, kind):
            return f"{constants.ENDPOINT} {problem}", hint
    first = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, errors.HfHubHTTPError | ValueError):
        return (
            f"{constants.ENDPOINT} refused the download: {first}",
            "try again later, or download the model on another machine and give its folder",
        )
    return _explain_silence(offline=constants.HF_HUB_OFFLINE)


def _explain_silence(*, offline: bool) -> tuple[str, str]:
    from huggingface_hub import constants

    where = f"no complete copy in {cache_folder()}, and"
    if offline:
        return (
            f"{where} HF_HUB_OFFLINE is set",
            "unset HF_HUB_OFFLINE, or download the model on another machine and give its folder",
        )
    return (
        f"{where} {constants.ENDPOINT} cannot be reached",
        "check the network, HF_ENDPOINT and proxies, or download the model on another machine "
        "(a gated model needs HF_TOKEN) and give its folder",
    )


def _refusals() -> tuple[tuple[type[Exception], str, str], ...]:
    """Return what the hub answers, the special kinds before those that they are kinds of."""
    from huggingface_hub import errors

    return (
        (
            errors.GatedRepoError,
            "gives the model only to users who have accepted its conditions",
            "accept them on its page, then set HF_TOKEN or run `hf auth login`",
        ),
        (
            errors.RevisionNotFoundError,
            "has the model, but not this revision",
            "give a branch, a tag or a whole commit hash",
        ),
        (
            errors.RepositoryNotFoundError,
            "has no such model or it is private, and no such folder exists here",
            "check the spelling; for a private model set HF_TOKEN or run `hf auth login`",
        ),
        (
            errors.EntryNotFoundError,
            f"has the model, but the model has no {_CONFIG}",
            "give the id of a model in transformers' format, or the path of a .gguf file",
        ),
    )
