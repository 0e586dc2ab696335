"""Where an engine and its text models meet: a folder that only they can access."""

import os
import stat
from pathlib import Path

import pytest

from specpipe.core.errors import ConfigError
from specpipe.runtime import rendezvous
from specpipe.runtime.rendezvous import (
    FOLDER,
    MOST_PATH_BYTES,
    make_folder,
    model_socket,
    socket_path,
)


def test_the_folder_that_serve_names_is_taken(tmp_path: Path) -> None:
    assert model_socket(1, {FOLDER: str(tmp_path)}) == tmp_path / "engine.sock"


def test_models_of_one_server_that_was_started_by_hand_meet_and_others_do_not() -> None:
    ours, parents = os.getpid(), os.getppid()
    assert model_socket(ours, {}) == model_socket(ours, {FOLDER: ""})
    assert model_socket(ours, {}) != model_socket(parents, {})


def test_containers_that_share_a_temporary_folder_do_not_meet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They have the same process ids, but namespaces of their own."""
    here = model_socket(os.getpid(), {})
    real = Path.stat
    other = tmp_path / "namespace"
    other.touch()
    monkeypatch.setattr(
        Path, "stat", lambda path: real(other if str(path) == "/proc/self/ns/pid" else path)
    )
    assert model_socket(os.getpid(), {}) != here


def test_a_path_that_the_kernel_cannot_take_is_refused_with_the_way_out(tmp_path: Path) -> None:
    room = MOST_PATH_BYTES - len("/engine.sock")
    longest = Path("/" + "x" * (room - 1))
    assert len(str(socket_path(longest))) == MOST_PATH_BYTES
    with pytest.raises(ConfigError, match="108 bytes: a Unix socket's has at most 107") as caught:
        socket_path(Path(str(longest) + "x"))
    assert caught.value.hint is not None and "TMPDIR" in caught.value.hint


def test_the_folder_is_for_its_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    assert make_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not make_folder(folder)


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match=f"with mode 0{mode:o}"):
        make_folder(folder)


def test_a_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="needs a folder of user"):
        make_folder(tmp_path / "link")


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    monkeypatch.setattr(rendezvous.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match="this one is of user"):
        make_folder(tmp_path / "theirs")
