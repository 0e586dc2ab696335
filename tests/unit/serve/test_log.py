"""Logs of servers: bounded, never shared, whole to the last line, and read for the cause."""

import subprocess
import sys
from pathlib import Path

import pytest

from specpipe.core.errors import ConfigError
from specpipe.serve.address import free_address
from specpipe.serve.log import KEPT, claimed_log, find_cause
from specpipe.serve.tritonserver import start_server

WITHOUT_GPU = """\
W1128 21:40:30.227281 26732 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory"
E1128 21:40:30.227445 26732 server.cc:241] "CudaDriverHelper has not been initialized."
"""
AT_THE_END = """\
| m     | 1       | UNAVAILABLE: Internal: ValueError: the engine is damaged |
Error: Failed to initialize NVML
W1128 21:40:30.237046 26732 metrics.cc:798] "DCGM unable to start: DCGM initialization error"
error: creating server: Internal - failed to load all models
"""


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (
            "E1128 21:40:30.228532 26732 model_repository_manager.cc:1460] "
            "\"Poll failed for model directory 'some': failed to read text proto\"",
            "Poll failed for model directory 'some': failed to read text proto",
        ),
        (
            "E1128 21:40:31.933293 26743 model_lifecycle.cc:642] \"failed to load 'm' version 1: "
            'Internal: ValueError: the engine is damaged\\n\\nAt:\\n  model.py(3): initialize\\n"',
            "failed to load 'm' version 1: Internal: ValueError: the engine is damaged",
        ),
        ("  ConfigError: the engine is damaged", "ConfigError: the engine is damaged"),
    ],
)
def test_the_cause_is_the_last_error_that_is_one(line: str, cause: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f'{WITHOUT_GPU}E1128 1 2 x.cc:1] "early"\n{line}\n{AT_THE_END}')
    assert find_cause(tmp_path / "log") == cause


def test_without_an_error_the_cause_is_the_last_line(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one\ntwo\n")
    assert find_cause(tmp_path / "log") == "two"
    assert find_cause(tmp_path / "nothing") == "no output"


def test_the_warnings_of_a_machine_without_a_gpu_are_never_the_cause(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f"I1128 1 2 main.cc:1] starting\n{WITHOUT_GPU}{AT_THE_END}")
    (tmp_path / "bare").write_text("Error: Failed to initialize NVML\n\n")
    assert find_cause(tmp_path / "log") == "starting"
    assert find_cause(tmp_path / "bare") == "it printed no cause"


def test_a_folder_without_models_is_no_repository(tmp_path: Path) -> None:
    (tmp_path / "some/1").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"is no model repository(.|\n)*triton_repo/<name>"):
        with start_server(tmp_path, free_address(), tmp_path / "log"):
            pass
    assert not (tmp_path / "log").exists()


def test_two_servers_never_write_into_one_log(tmp_path: Path) -> None:
    path = tmp_path / "reports/server.log"
    with claimed_log(path) as first:
        first.file.write(b"of the first\n")
        with claimed_log(path) as second:
            second.file.write(b"of the second\n")
            assert second.path == tmp_path / "reports/server-2.log"
        assert path.read_text() == "of the first\n"


def test_a_log_is_claimed_as_long_as_its_server_lives_whoever_started_it(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    script = ["sh", "-c", "echo up; read line; echo last words"]
    with claimed_log(path) as log:
        server = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=log.file)
    with server, claimed_log(path) as other:
        assert other.path != path
        server.communicate(b"\n")
    assert path.read_text() == "up\nlast words\n"  # nobody of ours was there to read them
    with claimed_log(path) as again:
        assert again.path == path


def test_the_log_of_the_server_before_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    for number in range(KEPT + 3):
        with claimed_log(path) as log:
            assert path.read_bytes() == b""
            log.file.write(f"start {number}\n".encode())
    kept = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert kept == {
        "server.log": "start 5\n",
        "server.log.1": "start 4\n",
        "server.log.2": "start 3\n",
        "server.log.3": "start 2\n",
    }


def test_a_log_stays_within_its_bound_and_every_line_is_shown_once(tmp_path: Path) -> None:
    path, shown = tmp_path / "server.log", bytearray()
    code = "import sys\nfor i in range(20000): print(i, flush=True)"
    with claimed_log(path, shown.extend, limit_bytes=10_000) as log:
        subprocess.run([sys.executable, "-c", code], stdout=log.file, check=True)
        log.tend()
    files = [path, *(Path(f"{path}.{number}") for number in range(1, KEPT + 1))]
    assert sorted(tmp_path.iterdir()) == sorted(file for file in files if file.exists())
    assert path.stat().st_size <= 10_000 and (tmp_path / "server.log.1").exists()
    assert bytes(shown).split()[-1] == b"19999"
    assert len(bytes(shown).split()) == len(set(bytes(shown).split()))


def test_a_log_is_emptied_where_the_disk_has_no_room_for_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"a part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with claimed_log(tmp_path / "server.log", limit_bytes=10) as log:
        log.file.write(b"x" * 11)
        log.tend()
        assert [file.name for file in tmp_path.iterdir()] == ["server.log"]
        assert (tmp_path / "server.log").read_bytes() == b""
