"""Notes the tensors that a conversion has finished, so that a killed one can resume.

One line a tensor is appended when its bytes were handed to the kernel. A line is a claim, not a
proof: whoever goes on compares the digest with the bytes that are there, so neither a torn line
nor lost data after a power cut does harm.
"""

import json
import os
from pathlib import Path

Finished = tuple[str, str]  # name of the file, name of the tensor


class Journal:
    """A context manager over one journal file, which is made if need be."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.digests: dict[Finished, str] = {}

    def __enter__(self) -> "Journal":
        if self._path.is_file():
            for line in self._path.read_bytes().splitlines():
                self._take(line)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(self._fd, b"\n")  # ends a line that was torn
        return self

    def _take(self, line: bytes) -> None:
        try:
            file, tensor, digest = json.loads(line)
            self.digests[str(file), str(tensor)] = str(digest)
        except (ValueError, TypeError):
            return  # torn or damaged: that tensor will be written again

    def add(self, file: str, tensor: str, digest: str) -> None:
        """Note a finished tensor."""
        self.digests[file, tensor] = digest
        os.write(self._fd, json.dumps([file, tensor, digest]).encode() + b"\n")

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)
