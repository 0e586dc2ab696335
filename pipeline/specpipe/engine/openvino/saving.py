"""Saves graphs, and finds out why a graph could not be saved."""

import os
from pathlib import Path

import openvino as ov

from specpipe.core.errors import StageFailed

_PROBE = bytes(1 << 20)  # more than the blocks that a file system may still have


def save_graph(graph: ov.Model, path: Path) -> None:
    """Write a graph and, next to it, its weights.

    OpenVINO reports a full disk as an error of its own kind, or leaves a file cut short. Raises the
    OSError of the disk if it refuses more bytes, StageFailed if the files are not whole.
    """
    try:
        ov.save_model(graph, path, compress_to_fp16=False)
        problem = "" if path.read_bytes().rstrip().endswith(b"</net>") else "the file is cut short"
    except RuntimeError as error:
        problem = str(error).splitlines()[0]
    if not problem:
        return
    for file in (path.with_suffix(".bin"), path):
        _write_more(file)
    raise StageFailed(f"compile: OpenVINO could not write {path}: {problem}")


def _write_more(file: Path) -> None:
    """Write more bytes to a file that is of no use, for the error of the disk."""
    with file.open("ab") as opened:
        opened.write(_PROBE)
        opened.flush()
        os.fsync(opened.fileno())
