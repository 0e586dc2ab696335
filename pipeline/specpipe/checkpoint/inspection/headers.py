"""The headers of rank files: which tensors they hold.

Not here: which tensors they should hold; see `tensors`.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from specpipe.checkpoint.inspection.records import File, InspectionFinding, Ranks
from specpipe.checkpoint.safetensors_file import SafetensorsFile
from specpipe.checkpoint.shard import rank_file
from specpipe.core.errors import ConfigError, first_few


@dataclass(frozen=True)
class Stored:
    """One tensor in a file."""

    shape: tuple[int, ...]
    dtype: str


Header = Mapping[str, Stored]


def read_headers(
    folder: Path, ranks: Ranks
) -> tuple[list[File], dict[int, Header], list[InspectionFinding]]:
    """Return the rank files, the headers of those that are whole, and what is wrong with others."""
    files, headers, found = [], {}, list(_strays(folder, ranks))
    paths = [folder / rank_file(index) for index in range(ranks.count)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        found.append(
            InspectionFinding(
                f"{first_few(missing)}: not there, but mapping has {ranks.count} ranks",
                "copy all the rank files, or convert the model again",
            )
        )
    for index, path in enumerate(paths):
        if path.name in missing:
            continue
        try:
            headers[index] = _header(path)
        except ConfigError as error:
            found.append(
                InspectionFinding(
                    error.args[0].replace(f"{path.parent}/", ""), "copy or convert it again"
                )
            )
        files.append(_file(path, headers.get(index)))
    return files, headers, found


def _strays(folder: Path, ranks: Ranks) -> Iterator[InspectionFinding]:
    wanted = {rank_file(index) for index in range(ranks.count)}
    more = sorted(p.name for p in folder.glob("rank*.safetensors") if p.name not in wanted)
    if more:
        yield InspectionFinding(
            f"{first_few(more)}: mapping has {ranks.count} ranks only",
            "remove what belongs to another checkpoint, or correct 'mapping'",
        )


def _header(path: Path) -> Header:
    with closing(SafetensorsFile(path)) as file:
        return {name: Stored(file.shape(name), file.dtype(name)) for name in file.names()}


def _file(path: Path, header: Header | None) -> File:
    size = path.stat().st_size
    if header is None:
        return File(path.name, size)
    kinds = tuple(sorted({stored.dtype for stored in header.values()}))
    return File(path.name, size, len(header), kinds)
