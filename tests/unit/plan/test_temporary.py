"""A temporary folder that a server cannot use is found by `plan`, before anything is built."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.plan.make_plan import make_plan, require_buildable
from specpipe.plan.temporary import temporary_notes
from specpipe.runtime.rendezvous import MOST_PATH_BYTES

SOCKET = "/specpipe-xxxxxxxx/engine.sock"
LONGEST = Path("/" + "t" * (MOST_PATH_BYTES - len(SOCKET) - 1))


def test_the_note_names_a_folder_of_the_length_that_serve_makes() -> None:
    with tempfile.TemporaryDirectory(prefix="specpipe-") as made:
        assert len(Path(made).name) == len(Path(SOCKET).parent.name)


def test_a_path_of_the_longest_kind_is_taken_and_a_longer_one_is_named() -> None:
    assert not list(temporary_notes(LONGEST, on_cpu=True))
    (note,) = temporary_notes(LONGEST.with_name(LONGEST.name + "t"), on_cpu=False)
    assert "a path of 108 bytes: a Unix socket's has at most 107; set TMPDIR" in note


@pytest.mark.parametrize("name", ["/a b", "/jürgen", "/it's", "/$HOME"])
def test_a_name_that_triton_cannot_take_is_named_on_cpus(name: str) -> None:
    (note,) = temporary_notes(Path(name), on_cpu=True)
    assert f"cannot take the temporary folder {name}: " in note and "set TMPDIR" in note
    assert not list(temporary_notes(Path(name), on_cpu=False))


def test_plan_prints_it_and_build_is_not_refused(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (odd := tmp_path / "ü b").mkdir()
    config = read_config(write_config())
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    plan = make_plan(config, Workspace(tmp_path, config.name))
    assert any(note.startswith("`specpipe serve` will refuse") for note in plan.notes)
    require_buildable(plan)
