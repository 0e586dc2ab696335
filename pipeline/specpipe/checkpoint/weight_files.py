"""Finds the files of a folder that hold its tensors, in transformers' order of precedence.

A folder that looks like a model and is none is named: an adapter, another format, the root of a hub
cache, a download that was cut short, a pointer of git-lfs, a web page.

Not here: reading tensors, see `source.py` and `safetensors_file.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from specpipe.checkpoint.plain_files import AGAIN, read_json
from specpipe.core.errors import ConfigError, first_few

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt")
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# as transformers' `_get_resolved_checkpoint_files` (modeling_utils.py) looks for them
PRECEDENCE = (WHOLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER = "adapter_config.json"
_WEIGHTS = "model.safetensors, pytorch_model.bin, their .index.json, or a .gguf file"
_FOREIGN = {
    "consolidated*.safetensors": "Mistral's",
    "consolidated*.pth": "Meta's",
    "*.gguf": "llama.cpp's",
    "*.onnx": "ONNX's",
    "tf_model.h5": "TensorFlow's",
    "flax_model.msgpack": "Flax's",
}


def weight_files(folder: Path, *, expected: str = _WEIGHTS) -> tuple[Path, ...]:
    """Return the files of a folder that hold its tensors.

    Raises ConfigError if there are none; the hint then names the `expected` files.
    """
    for name in PRECEDENCE:
        file = folder / name
        if file.is_file() and name.endswith(".index.json"):
            return tuple(_shard(folder, file, shard) for shard in shard_names(file))
        if file.is_file():
            return (file,)
    for problem, hint in _mistaken(folder):
        raise ConfigError(f"{folder}: {problem}", hint=hint)
    raise ConfigError(f"{folder}: no weights in this folder", hint=f"expected {expected}")


def passed_over(weights: Sequence[Path]) -> tuple[str, ...]:
    """Return the other files of the folder that also hold weights, or name such files.

    transformers reads none of them if it finds the ones that were taken.
    """
    if not weights or weights[0].suffix == ".gguf":
        return ()
    folder = weights[0].parent
    taken = {file.name for file in weights}
    index = f"{'pytorch_model.bin' if weights[0].suffix == '.bin' else WHOLE}.index.json"
    if not taken & set(PRECEDENCE):
        taken.add(index)
    return tuple(name for name in PRECEDENCE if name not in taken and (folder / name).is_file())


def shard_names(index: Path) -> list[str]:
    """Return the files that an index names; raises ConfigError unless all are of its folder."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ConfigError(
            f"{index}: has no 'weight_map', which names the file of every tensor",
            hint="fetch the file again; it may be of another format",
        )
    for tensor, shard in shards.items():
        if not isinstance(shard, str) or not _is_inside(shard):
            raise ConfigError(
                f"{index}: the file of {tensor} is {shard!r}, which is no name in this folder",
                hint="do not use this checkpoint: somebody wrote the index by hand",
            )
    return sorted(set(shards.values()))


def _is_inside(name: str) -> bool:
    """Tell whether a relative path, as it is written, stays in its folder.

    Links are followed: the hub's cache is made of links, and who can write them can write files.
    """
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and (path.suffix in WEIGHT_SUFFIXES and "\\" not in name and "\0" not in name)
    )


def _shard(folder: Path, index: Path, shard: str) -> Path:
    if not (folder / shard).is_file():
        raise ConfigError(
            f"{folder / shard}: no such file, but {index.name} names it",
            hint="the download was cut short; fetch it again",
        )
    return folder / shard


def _mistaken(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield what a folder without weights is, and what to give in its place."""
    yield from _unfinished(folder)
    if (folder / ADAPTER).is_file():
        yield _adapter(read_json(folder / ADAPTER))
    if (folder / "snapshots").is_dir() and (folder / "refs").is_dir():
        yield (
            "the root of a model in the hub's cache",
            f"give {_snapshot(folder)}, or the model's id",
        )
    if caches := sorted(folder.glob("models--*")):
        names = [cache.name[8:].replace("--", "/", 1) for cache in caches]
        yield "the hub's cache, not a model", f"give a model's id: {first_few(names)}"
    for pattern, owner in _FOREIGN.items():
        if files := sorted(file.name for file in folder.glob(pattern)):
            yield _other_format(folder, files, owner)


def _unfinished(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the traces of a download that was cut short."""
    dangling = [f.name for f in folder.glob("*") if f.is_symlink() and not f.exists()]
    if dangling:
        yield f"the download was cut short: {first_few(sorted(dangling))} point to no file", AGAIN
    if any((folder / ".cache/huggingface/download").glob("**/*.incomplete")):
        yield "the download was cut short, and no weights are there yet", AGAIN


def _adapter(facts: Mapping[str, Any]) -> tuple[str, str]:
    base = facts.get("base_model_name_or_path") or "another model"
    return (
        f"a PEFT adapter ({facts.get('peft_type', 'of unknown type')}) for {base}, not a model",
        "merge it into its base (peft: `merge_and_unload`), save that, and give the new folder",
    )


def _other_format(folder: Path, files: Sequence[str], owner: str) -> tuple[str, str]:
    problem = f"its weights are in {owner} format: {first_few(files)}"
    if files[0].endswith(".gguf"):
        return problem, f"give the file: {folder / files[0]}"
    return problem, "give the folder of the model in transformers' format, with model.safetensors"


def _snapshot(folder: Path) -> Path:
    """Return the folder of the commit that the main branch was, or of any other."""
    main = folder / "refs/main"
    commit = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    there = sorted(path.name for path in (folder / "snapshots").iterdir())
    return folder / "snapshots" / (commit or (there or ["COMMIT"])[0])


def refuse_adapter(folder: Path) -> None:
    """Raise ConfigError if transformers would load another model and an adapter, not this one."""
    file = folder / ADAPTER
    if file.is_file():
        problem, hint = _adapter(read_json(file))
        raise ConfigError(
            f"{file}: next to weights, it makes transformers load {problem}",
            hint=f"{hint}; if these weights are merged already, remove {ADAPTER}",
        )
