"""Checks values of a checkpoint: finite, zero where it is padding, equal to their digests.

A few rows show whether a rank file is a copy of another.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from specpipe.checkpoint.families import Shard
from specpipe.checkpoint.inspection.headers import Header, Stored
from specpipe.checkpoint.inspection.records import InspectionFinding
from specpipe.checkpoint.inspection.tensors import Expected
from specpipe.checkpoint.safetensors_file import SafetensorsFile, raw_bytes
from specpipe.checkpoint.shard import rank_file
from specpipe.checkpoint.transfer import DIGESTS
from specpipe.core.errors import first_few

if TYPE_CHECKING:
    import torch

_PIECE = 4 << 20  # bytes that are looked at at a time
_CONVERT = "convert the model again"
_SAMPLES, _SAMPLED_ROWS = 4, 16  # matrices of each rank, and rows of each
EMBEDDING, HEAD = "transformer.vocab_embedding.weight", "lm_head.weight"


def check_values(
    folder: Path,
    headers: Mapping[int, Header],
    expected: Mapping[int, Mapping[str, Expected]],
    tp_size: int,
    progress: Callable[[int, int], None],
) -> tuple[list[InspectionFinding], list[str]]:
    """Read all tensors of the ranks with whole headers; return defects and remarks.

    Memory holds a few megabytes at a time. Digests are compared where conversion left some.
    """
    total = sum((folder / rank_file(rank)).stat().st_size for rank in headers)
    known, found, remarks, done = _read_digests(folder), [], [], 0
    for rank, header in headers.items():
        digests = {}
        with closing(SafetensorsFile(folder / rank_file(rank))) as file:
            for name, stored in sorted(header.items()):
                wanted = expected.get(rank, {}).get(name)
                padded = _first_padding(stored, wanted, rank % tp_size) if wanted else None
                sentences, digests[name], size = _look(file, name, stored, padded)
                found += [
                    InspectionFinding(f"rank {rank}: {name} {s}", _CONVERT) for s in sentences
                ]
                done += size
                progress(min(done, total), total)
        found += _changed(rank, digests, known.get(rank_file(rank), {}))
        if EMBEDDING in digests and digests[EMBEDDING] == digests.get(HEAD):
            remarks.append(f"rank {rank}: lm_head is a copy of the embedding (they are tied)")
    progress(total, total)
    return found, remarks


def check_copies(
    folder: Path, headers: Mapping[int, Header], expected: Mapping[int, Mapping[str, Expected]]
) -> list[InspectionFinding]:
    """Return which ranks hold the same rows of tensors that are cut over the ranks.

    Reads the first rows of a few tensors, so it is quick.
    """
    seen: dict[tuple[tuple[str, str], ...], int] = {}
    found = []
    for rank in sorted(headers.keys() & expected.keys()):
        rows = tuple(_first_rows(folder / rank_file(rank), headers[rank], expected[rank]))
        if rows and rows in seen:
            found.append(
                InspectionFinding(
                    f"rank {rank} is a copy of rank {seen[rows]}: tensors that are cut over the "
                    "ranks hold the same values",
                    "copy the right rank file, or convert the model again",
                )
            )
        seen.setdefault(rows, rank)
    return found


def _first_rows(
    path: Path, header: Header, expected: Mapping[str, Expected]
) -> Iterator[tuple[str, str]]:
    """Yield names and digests of the first rows of cut matrices, unless they are all the same."""
    cut = [n for n, want in sorted(expected.items()) if want.shape != want.plan.shape]
    names = [n for n in cut if n in header and len(header[n].shape) > 1 and header[n].shape[0]]
    with closing(SafetensorsFile(path)) as file:
        for name in names[:_SAMPLES]:
            rows = file.rows(name, 0, min(_SAMPLED_ROWS, header[name].shape[0])).contiguous()
            data = raw_bytes(rows)
            if bytes(data).strip(bytes(data[:1])):
                yield name, hashlib.sha256(data).hexdigest()


def _first_padding(stored: Stored, wanted: Expected, tp_rank: int) -> int | None:
    """Return the first row of a tensor that is padding of the vocabulary; None if none is."""
    if wanted.plan.shard is not Shard.HEAD or stored.shape != wanted.shape:
        return None
    rows = wanted.shape[0]
    first = wanted.plan.shape[0] - tp_rank * rows
    return max(0, first) if first < rows else None


def _look(
    file: SafetensorsFile, name: str, stored: Stored, padded: int | None
) -> tuple[list[str], str, int]:
    """Return what is wrong with one tensor's values, their sha256, and their size in bytes."""
    import torch

    bad, size, at, sha, stains = 0, 0, 0, hashlib.sha256(), 0
    for piece in _pieces(file, name, stored):
        sha.update(raw_bytes(piece.contiguous()))
        size += piece.numel() * piece.element_size()
        if piece.is_floating_point():
            values = piece if piece.element_size() > 1 else piece.float()
            if not torch.isfinite(values.abs().max()):  # a quarter of the work of counting
                bad += int((~torch.isfinite(values)).sum())
            if padded is not None and at + len(piece) > padded:
                stains += int((values[max(0, padded - at) :] != 0).any())
        at += len(piece)
    found = [f"has {bad} values that are not finite"] if bad else []
    if stains:
        found.append("has padding that is not zero")
    return found, sha.hexdigest(), size


def _pieces(file: SafetensorsFile, name: str, stored: Stored) -> Iterator["torch.Tensor"]:
    if not stored.shape:
        yield file.read(name).view(1)
        return
    row = 8  # bytes an element, at most
    for dim in stored.shape[1:]:
        row *= dim
    step = max(1, _PIECE // max(1, row))
    for begin in range(0, stored.shape[0], step):
        yield file.rows(name, begin, min(begin + step, stored.shape[0]))


def _read_digests(folder: Path) -> dict[str, dict[str, str]]:
    """Return the digests that a conversion of ours left; empty if it was not ours."""
    try:
        known = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    tables = known.items() if isinstance(known, dict) else ()
    return {file: digests for file, digests in tables if isinstance(digests, dict)}


def _changed(
    rank: int, digests: Mapping[str, str], known: Mapping[str, str]
) -> list[InspectionFinding]:
    changed = sorted(n for n in digests if n in known and digests[n] != known[n])
    if not changed:
        return []
    sentence = f"rank {rank}: {first_few(changed)} is not what was written"
    return [InspectionFinding(sentence, _CONVERT)]
