"""What stands still is found, what ends leaves nothing, and nobody gets between: real servers."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from specpipe.core.errors import Unavailable
from specpipe.serve.address import split_host_and_port
from specpipe.serve.client import Client, Options
from specpipe.serve.probe import answers_ping, answers_request, answers_stream
from specpipe.serve.watch import children, read_metrics
from tests.helpers.processes import command_lines
from tests.helpers.servers import Run, Served, port_options, ready, serving
from tests.helpers.waiting import until

pytestmark = pytest.mark.e2e


def leftovers(folder: Path, pid: int) -> dict[str, list[str]]:
    """Return the processes, temporary files and shared memory that a command left."""
    return {
        "processes": command_lines(folder),
        "files": [file.name for file in folder.iterdir()],
        "shared memory": [file.name for file in Path("/dev/shm").glob(f"specpipe{pid}_*")],
    }


NOTHING: dict[str, list[str]] = {"processes": [], "files": [], "shared memory": []}


def test_an_engine_that_stands_still_is_started_again_and_then_ends_the_command(
    run: Run, tmp_path: Path
) -> None:
    with serving(
        run.workspace.repository, tmp_path, "--restarts", "1", "--stall-timeout", "6"
    ) as process:
        for _ in range(2):
            engines = children(ready(process)["pid"])
            stopped = next(pid for pid, name in engines.items() if name == "tensorrt_llm")
            os.kill(stopped, signal.SIGSTOP)
        assert process.wait(120) == 4
    told = (tmp_path / "stderr").read_text()
    assert "the engine has not answered for" in told and "Starting it again" in told
    assert "after 1 restarts in an hour" in told
    assert not [line for line in command_lines(tmp_path) if "triton" in line]


def test_a_server_whose_process_is_stopped_is_noticed(run: Run, tmp_path: Path) -> None:
    with serving(run.workspace.repository, tmp_path, "--stall-timeout", "6") as process:
        os.kill(ready(process)["pid"], signal.SIGSTOP)
        assert process.wait(120) == 4
    assert "has not answered for" in (tmp_path / "stderr").read_text()


def test_requests_of_serve_move_none_of_the_metrics_of_ours(server: Served) -> None:
    address, front = server.endpoint.address, server.endpoint.front
    assert front is not None and server.endpoint.engine_socket is not None

    def ours() -> list[str]:
        lines = read_metrics(address) or []
        return [line for line in lines if line.startswith("specpipe_")]

    def answered() -> int:
        counts = (line for line in ours() if line.startswith("specpipe_requests_total"))
        return sum(int(line.split()[-1]) for line in counts)

    earlier = answered()
    server.client.generate("The quick", Options(max_tokens=5))
    until(lambda: answered() > earlier)  # a request is counted after its last response
    before = ours()
    assert before
    for _ in range(3):
        assert answers_request(address.grpc, front, 30)
        assert answers_stream(address.grpc, 30)
        assert answers_ping(server.endpoint.engine_socket, 30)
    assert ours() == before


def command(run: Run, name: str, *options: str) -> list[str]:
    """Return a command line for a run, with prompts that it has room for."""
    folder = run.workspace.root
    (folder / "prompts.jsonl").write_text('{"prompt": "The quick brown fox"}\n')
    values = json.loads(Path(run.config.path).read_text())
    values["validate"] = {"prompts": str(folder / "prompts.jsonl"), "max_tokens": 20}
    (folder / "short.yaml").write_text(json.dumps(values))
    place = ["--config", str(folder / "short.yaml"), "--workspace", str(folder)]
    return [sys.executable, "-m", "specpipe", name, *place, *options]


def test_a_second_server_leaves_the_log_of_the_first_alone(run: Run, tmp_path: Path) -> None:
    logs = []
    with ExitStack() as stack:
        for _ in range(2):
            process = subprocess.Popen(
                command(run, "serve", *port_options()), stdout=subprocess.PIPE, text=True
            )
            stack.callback(process.wait, 60)
            stack.callback(process.terminate)
            assert process.stdout
            logs.append(Path(json.loads(process.stdout.readline())["log"]))
            stack.callback(process.stdout.close)
        assert [log.name for log in logs] == ["tritonserver.log", "tritonserver-2.log"]
        assert all("Started GRPCInferenceService" in log.read_text() for log in logs)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Return a folder with a short name: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="sp-") as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    ("name", "number"),
    [("serve", signal.SIGTERM), ("serve", signal.SIGHUP), ("validate", signal.SIGTERM)],
)
def test_a_signal_leaves_nothing_of_a_command_with_a_server(
    name: str, number: signal.Signals, run: Run, scratch: Path, tmp_path: Path
) -> None:
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            command(run, name, *(port_options() if name == "serve" else ())),
            stdout=subprocess.DEVNULL, stderr=stderr, env={**os.environ, "TMPDIR": str(scratch)},
        )  # fmt: skip
    served = "tensorrt_llm/1/model.py"
    until(
        lambda: (
            process.poll() is not None or any(served in line for line in command_lines(scratch))
        ),
        120,
    )
    assert process.poll() is None, (tmp_path / "stderr").read_text()
    assert leftovers(scratch, process.pid)["shared memory"]
    process.send_signal(number)
    code = process.wait(60)
    assert code == (0 if name == "serve" else 128 + number), (tmp_path / "stderr").read_text()
    assert leftovers(scratch, process.pid) == NOTHING


@pytest.mark.parametrize("victim", ["tensorrt_llm", "tritonserver"])
def test_a_process_that_dies_in_an_answer_is_unavailable_to_its_client(
    victim: str, run: Run, tmp_path: Path
) -> None:
    with serving(run.workspace.repository, tmp_path) as process:
        told = ready(process)
        processes = {name: pid for pid, name in children(told["pid"]).items()}
        client = Client(told["grpc"], timeout_s=60)
        pieces = client.stream("The quick", Options(max_tokens=3000, end_id=-1))
        next(pieces)
        os.kill(processes.get(victim, told["pid"]), signal.SIGKILL)
        with pytest.raises(Unavailable) as error:
            for _ in pieces:
                pass
        assert error.value.exit_code == 6 and "no server at" not in str(error.value)
        if victim == "tritonserver":
            assert "was lost in the middle of the answer" in str(error.value)
        with pytest.raises(Unavailable):
            client.generate("The quick")


def test_a_reader_that_leaves_a_stream_ends_generate_quietly(server: Served) -> None:
    words = ["generate", "--url", server.url, "--stream", "--max-tokens", "3000", "The quick"]
    process = subprocess.Popen(
        [sys.executable, "-m", "specpipe", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stdout and process.stderr
        process.stdout.read(1)
        process.stdout.close()
        told = process.stderr.read().decode()
        assert process.wait(60) == 141, told
    assert told == ""


def test_a_server_on_ipv6_with_proxies_in_the_environment_serves(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = "http://127.0.0.1:1"
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), nowhere)
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    with serving(run.workspace.repository, tmp_path, host="::1") as process:
        told = ready(process)
        assert told["grpc"].startswith("[::1]:") and split_host_and_port(told["http"])
        answer = Client(told["grpc"], timeout_s=60).generate("The quick", Options(max_tokens=5))
        assert answer.output_tokens == 5
        process.terminate()
        assert process.wait(60) == 0
