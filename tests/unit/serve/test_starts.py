"""Starts of a tritonserver that aborts by a fault of its own; a script stands for it."""

import sys
from pathlib import Path

import pytest

from specpipe.core.errors import StageFailed
from specpipe.serve.address import free_address
from specpipe.serve.tritonserver import DAMAGED_LOCK, STARTS, start_server

SCRIPT = """#!/usr/bin/env bash
cd {folder}
aborts=$(cat aborts)
if ((aborts > 0)); then
  echo $((aborts - 1)) > aborts
  echo "terminate called after throwing an instance of '$(cat reason)'"
  echo "  what():  $(cat reason)"
  kill -ABRT $$
fi
touch up
exec sleep 100
"""


@pytest.fixture
def triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a package whose server aborts as often as the file `aborts` tells."""
    folder = tmp_path / "site/pytriton"
    server = folder / "tritonserver"
    stubs = server / f"python_backend_stubs/3.{sys.version_info.minor}"
    for part in ("bin", "backends/python"):
        (server / part).mkdir(parents=True)
    stubs.mkdir(parents=True)
    (stubs / "triton_python_backend_stub").touch()
    (folder / "__init__.py").touch()
    (folder / "reason").write_text(DAMAGED_LOCK)
    program = server / "bin/tritonserver"
    program.write_text(SCRIPT.format(folder=folder))
    program.chmod(0o755)
    monkeypatch.syspath_prepend(folder.parent)
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "repository/model").mkdir(parents=True)
    (tmp_path / "repository/model/config.pbtxt").touch()
    return tmp_path / "repository"


def test_a_server_that_aborts_because_of_a_damaged_lock_is_started_again(
    triton: Path, repository: Path, tmp_path: Path
) -> None:
    (triton / "aborts").write_text("2")
    log = tmp_path / "log"
    with start_server(repository, free_address(), log, give_up=(triton / "up").exists) as server:
        assert server.is_alive()
    assert not server.is_alive()
    assert log.read_text().count(f"what():  {DAMAGED_LOCK}") == 2


@pytest.mark.parametrize(("reason", "starts"), [(DAMAGED_LOCK, STARTS), ("std::bad_alloc", 1)])
def test_a_server_that_aborts_again_or_for_another_reason_is_given_up(
    reason: str, starts: int, triton: Path, repository: Path, tmp_path: Path
) -> None:
    (triton / "aborts").write_text("100")
    (triton / "reason").write_text(reason)
    log = tmp_path / "log"
    with pytest.raises(StageFailed, match=f"ended while starting: what.*{reason}"):
        with start_server(repository, free_address(), log):
            pass
    assert log.read_text().count("terminate called") == starts
