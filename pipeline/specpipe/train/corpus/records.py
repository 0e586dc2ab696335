"""Reads files and datasets as records: values of JSON, each with the place that it is from.

What parses as JSON is never plain text, whatever the file is called.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specpipe.config.training import Dataset
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.train.corpus.files import JSON, TABLES, kind_of, read_text

_EXTRA = "install the extra `train`, in a clone of specpipe: pip install -e '.[train]'"


@dataclass(frozen=True)
class Record:
    """One document of a file as it was found: an object, a list of messages, or a text."""

    place: str  # file:line, file[3] for an item of a list, or the name and row of a dataset
    value: Any


def read_records(file: Path) -> list[Record] | str:
    """Return the records of a file, or its text if it is plain text.

    Raises ConfigError, with the line, for a file of JSON that does not parse.
    """
    if kind_of(file) in TABLES:
        return list(_table(file))
    text = read_text(file)
    if kind_of(file) not in JSON and not _begins_as_json(text):
        return text
    return list(_parsed(text, str(file)))


def _begins_as_json(text: str) -> bool:
    """Tell whether the whole text, or its first line, is an object or a list in JSON."""
    begun = text.lstrip()
    if not begun.startswith(("{", "[")):
        return False
    first = begun.split("\n", 1)[0]
    return any(_load(part) is not None for part in (first, begun))


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _parsed(text: str, place: str) -> Iterator[Record]:
    """Yield the records of one JSON value, or of one value a line; U+2028 ends no line."""
    whole = _load(text)
    if whole is not None:
        yield from _unpacked(whole, place)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Record(f"{place}:{number}", _line(line, f"{place}:{number}"))


def _line(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{place}: not JSON: {error}", hint="give one JSON value a line, or one for the file"
        ) from error


def _unpacked(value: Any, place: str) -> Iterator[Record]:
    """Yield the records in a value: the items of a list, unless it is the messages of one chat."""
    if isinstance(value, dict):
        inner = [item for item in value.values() if _is_list_of_records(item)]
        own_shape = {"messages", "conversations", "conversation", "prompt", "text"} & value.keys()
        value = inner[0] if len(value) == len(inner) == 1 and not own_shape else [value]
    elif not isinstance(value, list) or is_chat(value):
        value = [value]
    for number, item in enumerate(value):
        yield Record(f"{place}[{number}]" if len(value) > 1 else place, item)


def _is_list_of_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def is_chat(value: Any) -> bool:
    """Tell whether a value is a list of messages, in the names of OpenAI or of ShareGPT."""
    return _is_list_of_records(value) and all("role" in m or "from" in m for m in value)


def _table(file: Path) -> Iterator[Record]:
    """Yield the rows of a parquet file; needs pyarrow."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise Unsupported(f"{file}: reading parquet needs pyarrow", hint=_EXTRA) from error
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    yield Record(f"{file}[{number}]", _without_nulls(row))
                    number += 1
    except (ArrowException, OSError) as error:
        raise ConfigError(f"{file}: not a parquet file that can be read: {error}") from error


def _without_nulls(value: Any) -> Any:
    """Return a row without keys that are null: a table has every key in every row."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


Load = Callable[..., Iterable[Any]]


def dataset_records(dataset: Dataset, load: Load | None = None) -> list[Record]:
    """Return the rows of a dataset of the Hugging Face hub, or of a folder in its layout.

    `load` has the interface of `datasets.load_dataset`. Raises Unsupported without the package
    `datasets`, ConfigError if the dataset cannot be loaded.
    """
    name = dataset.name if dataset.subset is None else f"{dataset.name}/{dataset.subset}"
    place = f"dataset {name}, {dataset.split}"
    try:
        rows = (load or _loader())(
            dataset.name, dataset.subset, split=dataset.split, revision=dataset.revision
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(
            f"{place}: cannot be loaded: {error}",
            hint="check the name, the subset, the split and the connection",
        ) from error
    found = []
    for number, row in enumerate(rows):
        if dataset.rows is not None and number >= dataset.rows:
            break
        found.append(Record(f"{place}[{number}]", _without_nulls(row)))
    return found


def _loader() -> Load:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise Unsupported("datasets of the hub need the package `datasets`", hint=_EXTRA) from error
    load: Load = load_dataset
    return load
