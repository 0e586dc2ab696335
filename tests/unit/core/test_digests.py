"""A digest is remembered for as long as nothing touched the file, and never longer."""

import os
from dataclasses import replace
from pathlib import Path

from specpipe.core.artifacts import digest_file
from specpipe.core.digests import remember, remembered, stamp


def forbidden(path: Path) -> str:
    raise AssertionError(f"{path} was read")


def await_tick(file: Path) -> None:
    """Wait until the file system's clock has moved on since a file was changed."""
    probe = file.with_name("probe")
    while True:
        probe.write_text("")
        if probe.stat().st_ctime_ns > file.stat().st_ctime_ns:
            return


def settle(memory: Path, file: Path) -> None:
    """Remember a file's digest as if it had been written long ago."""
    remember(memory, {file: replace(stamp(file), settled=True)}, {file: digest_file(file)})


def test_what_was_not_touched_is_not_read_again(tmp_path: Path) -> None:
    file, memory = Path(os.__file__), tmp_path / "memory.json"  # old
    first = remembered(file, memory, digest_file)
    assert remembered(file, memory, forbidden) == first == digest_file(file)


def test_what_has_just_changed_is_not_remembered(tmp_path: Path) -> None:
    """Another change within the same tick of the clock would leave the same stamp."""
    file, memory = tmp_path / "f", tmp_path / "memory.json"
    file.write_text("one")
    remembered(file, memory, digest_file)
    file.write_text("two")
    assert remembered(file, memory, digest_file) == digest_file(file)
    assert remembered(file, memory, lambda path: "read") == "read"


def test_a_change_that_hides_its_time_is_seen(tmp_path: Path) -> None:
    file, memory = tmp_path / "f", tmp_path / "memory.json"
    file.write_text("one")
    settle(memory, file)
    assert remembered(file, memory, forbidden) == digest_file(file)
    before = file.stat()
    await_tick(file)
    file.write_text("two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_mtime_ns, file.stat().st_size) == (before.st_mtime_ns, before.st_size)
    assert remembered(file, memory, lambda path: "read") == "read"


def test_a_damaged_memory_is_forgotten(tmp_path: Path) -> None:
    file, memory = tmp_path / "f", tmp_path / "memory.json"
    file.write_text("one")
    for text in ("{", "[]"):
        memory.write_text(text)
        assert remembered(file, memory, digest_file) == digest_file(file)


def test_a_memory_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "no folder").write_text("")
    memory = tmp_path / "no folder/memory.json"
    file = Path(os.__file__)
    assert remembered(file, memory, digest_file) == digest_file(file)
