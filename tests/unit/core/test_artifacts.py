"""Content keys, reasons, damage, and the lock that keeps two builders apart."""

import json
from pathlib import Path

import pytest

from specpipe.core.artifacts import Manifest, describe_changes, locked, read_artifact, why_stale
from specpipe.core.publishing import staged, write_publish

INPUTS = {"weights": "a" * 64, "dtype": "float32"}


def publish(path: Path, inputs: dict[str, str] = INPUTS, text: str = "content") -> None:
    with staged(path, "test") as temporary:
        (temporary / "data.txt").write_text(text)
        write_publish(temporary, path, Manifest("engine", inputs))


def test_a_published_artifact_is_fresh_for_its_inputs(tmp_path: Path) -> None:
    publish(tmp_path / "a")
    assert why_stale(tmp_path / "a", "engine", lambda: INPUTS) is None
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_changed_inputs_are_named_with_old_and_new_value(tmp_path: Path) -> None:
    publish(tmp_path / "a")
    reason = why_stale(tmp_path / "a", "engine", lambda: {"weights": "b" * 64, "extra": "1"})
    assert reason == (
        "dtype was removed (it was float32); extra is new (1); "
        "weights changed from aaaaaaaaaaaa to bbbbbbbbbbbb"
    )


def test_of_records_the_keys_that_differ_are_named() -> None:
    old = {"speculation": '{"method": "medusa", "num_draft_tokens": 4, "tree": [[0]]}'}
    new = {"speculation": '{"method": "medusa", "num_draft_tokens": 6}'}
    assert describe_changes(old, new) == (
        "num_draft_tokens changed from 4 to 6; tree was removed (it was [[0]])"
    )
    assert describe_changes({"n": "3"}, {"n": "4"}) == "n changed from 3 to 4"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda a: (a / "data.txt").write_text("cont"), "has 4 bytes instead of 7"),
        (lambda a: (a / "data.txt").unlink(), "data.txt is missing"),
        (lambda a: (a / "specpipe.json").unlink(), "incomplete or was not created by specpipe"),
        (
            lambda a: (a / "specpipe.json").write_text("{"),
            "incomplete or was not created by specpipe",
        ),
    ],
)
def test_a_damaged_artifact_is_not_reused(damage, words: str, tmp_path: Path) -> None:
    publish(tmp_path / "a")
    damage(tmp_path / "a")
    assert words in str(why_stale(tmp_path / "a", "engine", lambda: INPUTS))


def test_manifests_of_equal_artifacts_are_equal_bytes(tmp_path: Path) -> None:
    publish(tmp_path / "a")
    publish(tmp_path / "b", dict(reversed(INPUTS.items())))
    texts = [(tmp_path / name / "specpipe.json").read_bytes() for name in "ab"]
    assert texts[0] == texts[1]
    artifact = read_artifact(tmp_path / "a")
    assert artifact is not None and artifact.manifest.key == json.loads(texts[0])["key"]


def test_a_second_builder_waits_and_says_so(tmp_path: Path) -> None:
    import multiprocessing
    import time

    said: list[str] = []
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()

    def hold() -> None:
        with locked(tmp_path, lambda text: None):
            ready.set()
            release.wait(10)

    holder = context.Process(target=hold)
    holder.start()
    ready.wait(10)

    def notify(text: str) -> None:
        said.append(text)
        release.set()

    with locked(tmp_path, notify):
        assert time.monotonic() > 0
    holder.join()
    assert len(said) == 1 and "waiting" in said[0]
