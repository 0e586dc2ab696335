"""Whole or not there, the old or the new, and nothing of anybody else's touched."""

import errno
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from specpipe.core import publishing
from specpipe.core.artifacts import Manifest, read_artifact
from specpipe.core.errors import ConfigError, StageFailed, Unreadable
from specpipe.core.publishing import (
    exchange,
    put_back,
    remove_leftovers,
    require_replaceable,
    staged,
    why_kept,
    write_publish,
)
from tests.helpers.killing import Step, call_at_every_step, run_in_child


def publish(path: Path, text: str = "content", resume: str | None = None) -> None:
    with staged(path, "test", resume) as temporary:
        (temporary / "data.txt").write_text(text)
        (temporary / "more").mkdir(exist_ok=True)
        (temporary / "more/data.txt").write_text(text)
        write_publish(temporary, path, Manifest("engine", {"text": text}))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_block_that_raises_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staged(tmp_path / "a", "test") as temporary:
        (temporary / "half").write_text("...")
        raise RuntimeError
    assert names(tmp_path) == []


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="convert: the disk is full"):
        with staged(tmp_path / "a", "convert") as temporary:
            (temporary / "half").write_text("...")
            raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


def test_an_old_artifact_survives_until_the_new_one_is_whole(tmp_path: Path) -> None:
    publish(tmp_path / "a", "old")
    with pytest.raises(RuntimeError), staged(tmp_path / "a", "test"):
        raise RuntimeError
    assert (tmp_path / "a/data.txt").read_text() == "old"
    publish(tmp_path / "a", "new")
    assert (tmp_path / "a/data.txt").read_text() == "new"
    assert names(tmp_path) == ["a"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    publish(tmp_path / "a")
    assert names(tmp_path) == ["a"] and read_artifact(tmp_path / "a")


def test_a_folder_of_the_users_is_never_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "draft"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"draft is not empty and has no specpipe\.json"):
        publish(mine)
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert names(tmp_path) == ["draft"]


def test_a_file_of_the_users_in_a_folder_of_ours_is_named_and_kept(tmp_path: Path) -> None:
    publish(tmp_path / "a")
    (tmp_path / "a/more/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"did not write: more/notes.txt(.|\n)*move it elsewhere"):
        publish(tmp_path / "a")
    assert (tmp_path / "a/more/notes.txt").read_text() == "mine"


def test_a_file_that_appears_while_the_artifact_is_made_is_kept_too(tmp_path: Path) -> None:
    publish(tmp_path / "a", "old")
    with pytest.raises(ConfigError, match="notes.txt"), staged(tmp_path / "a", "test") as temporary:
        (tmp_path / "a/notes.txt").write_text("mine")
        write_publish(temporary, tmp_path / "a", Manifest("engine", {}))
    assert (tmp_path / "a/data.txt").read_text() == "old"
    assert (tmp_path / "a/notes.txt").read_text() == "mine"


def test_what_python_caches_in_a_served_repository_is_not_the_users(tmp_path: Path) -> None:
    publish(tmp_path / "a")
    (tmp_path / "a/more/__pycache__").mkdir()
    (tmp_path / "a/more/__pycache__/model.cpython-312.pyc").write_bytes(b"")
    publish(tmp_path / "a", "new")
    assert names(tmp_path / "a/more") == ["data.txt"]


def test_a_link_or_a_file_in_the_place_of_an_artifact_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "b").write_text("mine")
    assert "a is a symbolic link, not a folder" in str(why_kept(tmp_path / "a"))
    with pytest.raises(ConfigError, match="b is a file, not a folder"):
        publish(tmp_path / "b")
    assert (tmp_path / "a").is_symlink() and (tmp_path / "b").read_text() == "mine"


def test_every_folder_that_is_kept_is_named_at_once(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    with pytest.raises(ConfigError, match=r"  - .*/a is(.|\n)*  - .*/b is"):
        require_replaceable([tmp_path / name for name in "abc"])


def test_only_leftovers_with_our_mark_are_removed(tmp_path: Path) -> None:
    theirs = (".a.my.old", ".a.123.tmp", ".a.backup.part", ".b.123.tmp")
    for name in theirs:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").touch()
    (tmp_path / ".a.my.old.mark").write_text("a note of the user's")
    child = multiprocessing.get_context("fork").Process(target=die_while_staging, args=(tmp_path,))
    child.start()
    child.join()
    assert len(names(tmp_path)) == len(theirs) + 3, "what the dead process left, and its mark"
    remove_leftovers(tmp_path / "a")
    assert names(tmp_path) == sorted([*theirs, ".a.my.old.mark"])
    assert all((tmp_path / name / "mine.txt").exists() for name in theirs)


def die_while_staging(folder: Path) -> None:
    with staged(folder / "a", "test") as temporary:
        (temporary / "half").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_begun_work_is_found_again_under_its_key_and_only_there(tmp_path: Path) -> None:
    key, other = "1" * 64, "2" * 64
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "a", "test", key) as temporary:
        (temporary / "half").write_text("...")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "a", "test", other) as temporary:
        assert list(temporary.iterdir()) == []
        raise KeyboardInterrupt
    remove_leftovers(tmp_path / "a", key)
    with pytest.raises(RuntimeError), staged(tmp_path / "a", "test", key) as temporary:
        assert (temporary / "half").read_text() == "..."
        raise RuntimeError  # a failure, not an interruption: nothing stays
    assert names(tmp_path) == []


def test_an_unreadable_source_is_named_and_keeps_what_was_begun(tmp_path: Path) -> None:
    missing, key = tmp_path / "source.bin", "1" * 64
    with pytest.raises(StageFailed, match=r"convert: .*source\.bin cannot be used: No such file"):
        with staged(tmp_path / "a", "convert", key) as temporary:
            (temporary / "half").write_text("...")
            missing.read_bytes()
    with pytest.raises(Unreadable), staged(tmp_path / "a", "convert", key) as temporary:
        assert (temporary / "half").read_text() == "..."
        raise Unreadable("a disk fell off")
    with staged(tmp_path / "a", "convert", key) as temporary:
        assert (temporary / "half").read_text() == "..."


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"test: cannot write .*/deep/file: No such file"):
        with staged(tmp_path / "a", "test") as temporary:
            (temporary / "deep/file").write_text("x")


def test_a_replaced_artifact_is_not_taken_for_begun_work(tmp_path: Path) -> None:
    """A process that dies between exchange and clean-up leaves the old artifact as its `.part`."""
    key = "1" * 64
    publish(tmp_path / "a", "old")
    die_at(lambda: publish(tmp_path / "a", "new", key), "exchanged")
    assert (tmp_path / "a/data.txt").read_text() == "new"
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "a", "test", key) as temporary:
        assert list(temporary.iterdir()) == []
        raise KeyboardInterrupt


def die_at(act: Callable[[], None], point: str) -> None:
    def run() -> None:
        def dying(one: Path, other: Path) -> bool:
            exchange(one, other)
            os.kill(os.getpid(), signal.SIGKILL)
            return True

        publishing.exchange = dying if point == "exchanged" else exchange
        act()

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def publish_in_child(path: Path, steps: int, *, exchanges: bool) -> tuple[int, int]:
    """Publish in another process, which dies at a step; return its exit code and steps taken."""

    def act(step: Step) -> None:
        def stepping(one: Path, other: Path) -> bool:
            step()
            return exchange(one, other) if exchanges else False

        publishing.exchange = stepping
        call_at_every_step(step)
        publish(path, "new")

    return run_in_child(act, steps)


def test_exchanging_is_possible_where_the_tests_run(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path / "a") == ["b"] and names(tmp_path / "b") == ["a"]


@pytest.mark.slow
@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two renames"])
def test_wherever_publishing_is_killed_the_old_or_the_new_artifact_is_whole(
    tmp_path: Path, exchanges: bool
) -> None:
    code, steps = publish_in_child(tmp_path / "count/a", sys.maxsize, exchanges=exchanges)
    assert code == 0 and steps > 5
    publish(tmp_path / "count/a", "old")
    _, steps = publish_in_child(tmp_path / "count/a", sys.maxsize, exchanges=exchanges)
    for point in range(steps + 1):
        path = tmp_path / str(point) / "a"
        publish(path, "old")
        code, _ = publish_in_child(path, point, exchanges=exchanges)
        assert code == -signal.SIGKILL, f"step {point} was not reached"
        if not exchanges:
            put_back(path)
        artifact = read_artifact(path)
        assert artifact is not None, f"killed at step {point}"
        texts = {file.read_text() for file in path.rglob("data.txt")}
        assert texts == {artifact.manifest.inputs["text"]} and texts <= {"old", "new"}
        remove_leftovers(path)
        assert names(path.parent) == ["a"], f"killed at step {point}"


def test_names_of_folders_with_the_signs_of_patterns_are_taken_as_they_are(tmp_path: Path) -> None:
    publish(tmp_path / "[a]*")
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "[a]*", "test", "1" * 64):
        raise KeyboardInterrupt
    remove_leftovers(tmp_path / "[a]*")
    assert names(tmp_path) == ["[a]*"]
    assert not re.search("tmp|old|part", str(names(tmp_path)))
