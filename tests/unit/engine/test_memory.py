"""What the kernel is told about an engine's files."""

import os
from pathlib import Path

import pytest

from specpipe.engine.openvino.memory import read_ahead

SIZE = 3 * 512 * 1024 + 5


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Record start and end of the parts that the kernel is asked to read."""
    found: list[tuple[int, int]] = []

    def advise(file: int, start: int, length: int, advice: int) -> None:
        assert os.fstat(file).st_size and advice == os.POSIX_FADV_WILLNEED
        found.append((start, start + length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return found


def test_the_kernel_is_asked_for_the_whole_file_in_order(
    tmp_path: Path, asked: list[tuple[int, int]]
) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(SIZE))
    thread = read_ahead([tmp_path / "absent.bin", file])
    assert thread is not None
    thread.join()
    starts, ends = zip(*asked, strict=True)
    assert starts == (0, *ends[:-1]) and ends[-1] >= SIZE


def test_files_that_are_too_large_for_memory_are_left_alone(
    tmp_path: Path, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(SIZE))
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 2 * SIZE - 1}.get)
    assert read_ahead([file]) is None and asked == []
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 2 * SIZE}.get)
    assert read_ahead([file]) is not None


def test_an_engine_is_loaded_where_the_kernel_takes_no_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(SIZE))
    monkeypatch.delattr(os, "posix_fadvise")
    thread = read_ahead([file])
    assert thread is not None
    thread.join()
