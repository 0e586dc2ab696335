"""Conversions that are killed anywhere, again and again, or run out of disk half-way."""

import errno
import itertools
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from specpipe.checkpoint import writer
from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import StageFailed
from specpipe.run.run import Run
from specpipe.run.stages import build
from tests.helpers.killing import Step, call_at_every_step, run_in_child

POINTS = 12


def run_of(config: Path, root: Path):
    found = read_config(config)
    return found, Workspace(root / "work", found.name)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def convert_in_child(run, steps: int) -> tuple[int, int]:
    """Convert in another process, which dies at a step; return its exit code and steps taken."""

    def convert(step: Step) -> None:
        call_at_every_step(step)
        build(Run(*run), ("convert",))

    return run_in_child(convert, steps)


@pytest.fixture
def expected(write_config, tmp_path: Path) -> dict[str, bytes]:
    run = run_of(write_config(), tmp_path / "expected")
    build(Run(*run), ("convert",))
    return files_of(run[1].checkpoint("target"))


@pytest.mark.slow
def test_wherever_a_conversion_is_killed_the_next_one_ends_as_if_nothing_had_been(
    write_config, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    code, steps = convert_in_child(run_of(write_config(), tmp_path / "count"), sys.maxsize)
    assert code == 0 and steps > 30
    for point in {*random.Random(0).sample(range(steps), POINTS), steps - 1, steps}:
        run = run_of(write_config(), tmp_path / str(point))
        code, _ = convert_in_child(run, point)
        assert code == -signal.SIGKILL, f"step {point} was not reached"
        build(Run(*run), ("convert",))
        assert files_of(run[1].checkpoint("target")) == expected, f"killed at step {point}"
        assert not list(run[1].engines.glob("checkpoints/.*"))


def test_a_conversion_that_is_killed_over_and_over_ends_at_last(
    write_config, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    run = run_of(write_config(), tmp_path)
    codes = list(itertools.takewhile(bool, (convert_in_child(run, 40)[0] for _ in range(20))))
    assert 1 < len(codes) < 20 and set(codes) == {-signal.SIGKILL}
    assert files_of(run[1].checkpoint("target")) == expected


def test_a_disk_that_fills_up_half_way_is_a_sentence_and_leaves_nothing(
    write_config, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files have their size from the start, so it is a later write that finds no block."""
    run, plain = run_of(write_config(), tmp_path), os.pwrite
    room = itertools.accumulate(itertools.repeat(-1), initial=10)

    def full(fd: int, block: memoryview, at: int) -> int:
        if next(room) <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(fd, block, at)

    with monkeypatch.context() as patch:
        patch.setattr(writer.os, "pwrite", full)
        with pytest.raises(StageFailed, match="convert: the disk is full(.|\n)*free some space"):
            build(Run(*run), ("convert",))
    assert files_of(run[1].engines / "checkpoints") == {}
    build(Run(*run), ("convert",))
    assert files_of(run[1].checkpoint("target")) == expected
