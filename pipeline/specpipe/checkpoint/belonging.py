"""Which target a drafter was trained for: a fingerprint that the drafter carries, and its check.

The fingerprint is the sha256 of the names, types, shapes and first rows of all tensors. It does not
depend on how they are divided into files, and reading it takes no longer than reading headers.
Another format of the same model has another one.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from specpipe.checkpoint.safetensors_file import SafetensorsFile
from specpipe.checkpoint.weight_files import weight_files
from specpipe.core.errors import Rejection

if TYPE_CHECKING:
    import torch

TARGET = "specpipe_target"  # in the metadata of a drafter's tensors, in a draft's config.json
CHANGED = "specpipe_changed_target"  # `true`: training has changed the target, into its backbone
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Mark:
    """What a drafter carries of its target."""

    fingerprint: str
    is_changed: bool = False  # the drafter needs the backbone that was trained with it

    def metadata(self) -> dict[str, str]:
        """Return the metadata of the drafter's safetensors file."""
        changed = {CHANGED: "true"} if self.is_changed else {}
        return {"format": "pt", TARGET: self.fingerprint, **changed}


def save_marked(tensors: "Mapping[str, torch.Tensor]", file: Path, mark: Mark | None) -> None:
    """Write a drafter's safetensors file with the mark of its target; equal tensors, equal bytes.

    The library writes the entries of the metadata in any order; here they are sorted.
    """
    from safetensors.torch import save_file

    save_file(dict(tensors), file, metadata=mark.metadata() if mark else None)
    with file.open("r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # as ever: the same entries in another order
            opened.seek(8)
            opened.write(text.ljust(length))


def mark_for(folder: Path, *, is_changed: bool = False) -> Mark:
    """Return the mark of a drafter of the target in a folder; without weights it is empty."""
    return Mark(fingerprint(weight_files(folder)) or "", is_changed)


def fingerprint(weights: Sequence[Path]) -> str | None:
    """Return the fingerprint of a model; None if it is not in safetensors files."""
    if not weights or any(file.suffix != _SUFFIX for file in weights):
        return None
    found = hashlib.sha256()
    with ExitStack() as stack:
        files = [stack.enter_context(closing(SafetensorsFile(file))) for file in weights]
        for name, file in sorted((n, i) for i, f in enumerate(files) for n in f.names()):
            found.update(_described(files[file], name))
    return found.hexdigest()


def _described(file: SafetensorsFile, name: str) -> bytes:
    import torch

    shape = file.shape(name)
    head = f"{name} {file.dtype(name)} {list(shape)}\n".encode()
    if not shape or not shape[0]:
        return head
    row = file.rows(name, 0, 1).contiguous().flatten()
    return head + row.view(torch.uint8).numpy().tobytes()


def read_mark(weights: Sequence[Path]) -> Mark | None:
    """Return the mark of a drafter; None if it has none, such as one that others have trained."""
    for file in weights:
        if file.suffix == _SUFFIX:
            metadata = _metadata(file)
            if metadata.get(TARGET):
                return Mark(metadata[TARGET], metadata.get(CHANGED) == "true")
    return None


def _metadata(file: Path) -> Mapping[str, str]:
    """Return the metadata of a safetensors file whose header was read before."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        found = json.loads(opened.read(length)).get("__metadata__", {})
    return found if isinstance(found, dict) else {}


def compare(mark: Mark, weights: Sequence[Path], what: str, key: str) -> Rejection | str | None:
    """Compare a drafter's mark with the target in `weights`.

    Returns None if it belongs to this target or if that cannot be told, a refusal for a drafter
    that needs its backbone, a remark for another target. `what` names the drafter, `key` where it
    is configured.
    """
    present = fingerprint(weights)
    if present in (None, mark.fingerprint):
        return None
    if mark.is_changed:
        return Rejection(
            f"{key}: {what} was trained together with a changed target (medusa2), and target.model "
            "is another one",
            "set target.model to the folder backbone/ next to the heads",
        )
    return (
        f"{key}: {what} was trained for other weights than those of target.model; its drafts stay "
        "correct, but fewer are accepted. Another format of the same model differs, too"
    )
