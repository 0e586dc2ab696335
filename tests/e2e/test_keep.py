"""`specpipe serve` as its users see it: how it stops, and what it does when its server dies."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from specpipe.serve.address import free_address
from specpipe.serve.watch import children
from tests.e2e import raw
from tests.e2e.conftest import Package, Served

pytestmark = pytest.mark.e2e

LONG = {"text_input": "The quick", "max_tokens": 3000, "stream": True, "end_id": -1}


@contextmanager
def serving(
    repository: Path, tmp_path: Path, *options: str, host: str = "127.0.0.1"
) -> Iterator["subprocess.Popen[str]"]:
    """Run the command on a repository, to the end of the block at most."""
    address = free_address(host)
    ports = {"grpc": address.grpc_port, "http": address.http_port, "metrics": address.metrics_port}
    command = [
        *(sys.executable, "-m", "specpipe", "serve"),
        *("--repository", str(repository), "--host", host),
        *(word for name, port in ports.items() for word in (f"--{name}-port", str(port))),
        *options,
    ]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.terminate()


def ready(process: "subprocess.Popen[str]") -> dict:
    assert process.stdout
    return json.loads(process.stdout.readline())


def answer_while(process: "subprocess.Popen[str]", *, signals: int) -> object:
    """Stop the command in the middle of an answer; return the last response."""
    url = ready(process)["grpc"]
    results: list = []
    begun = threading.Event()

    def ask() -> None:
        results.extend(raw.stream(url, "ensemble", LONG, on_result=begun.set))

    client = threading.Thread(target=ask)
    client.start()
    assert begun.wait(60)
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        threading.Event().wait(1)  # two at once are one to Python
    client.join()
    assert process.wait(60) == 0
    return results[-1]


def test_an_answer_in_hand_is_completed_before_the_server_stops(
    server: Served, tmp_path: Path
) -> None:
    with serving(server.workspace.repository, tmp_path) as process:
        assert not isinstance(answer_while(process, signals=1), Exception)
    assert "requests in flight: 1" in (tmp_path / "stderr").read_text()


def test_who_stops_twice_does_not_wait_for_answers(server: Served, tmp_path: Path) -> None:
    with serving(server.workspace.repository, tmp_path) as process:
        assert isinstance(answer_while(process, signals=2), Exception)


def test_a_crashed_server_is_started_again_as_often_as_asked(
    server: Served, tmp_path: Path
) -> None:
    with serving(server.workspace.repository, tmp_path, "--restarts", "1") as process:
        os.kill(ready(process)["pid"], signal.SIGSEGV)
        again = ready(process)
        results = raw.stream(again["grpc"], "ensemble", {**LONG, "max_tokens": 5})
        assert not isinstance(results[-1], Exception)
        models = {name: pid for pid, name in children(again["pid"]).items()}
        os.kill(models["tensorrt_llm"], signal.SIGKILL)
        assert process.wait(60) == 4
    told = (tmp_path / "stderr").read_text()
    assert "tritonserver was ended by SIGSEGV" in told
    assert "the process of the model tensorrt_llm ended by itself, after 1 restarts" in told


@pytest.mark.parametrize("loop", ["engine", "bls"])
def test_clients_that_leave_over_and_over_leave_the_service_whole(
    loop: str, package: Package, tmp_path: Path
) -> None:
    """Triton 2.51 may crash of them, on a busy machine in the middle of answers too."""
    short = {**LONG, "max_tokens": 20}
    _, workspace = package(serving={"loop": loop, "max_queue_size": 3})
    with serving(workspace.repository, tmp_path, "--restarts", "20") as process:
        url = ready(process)["grpc"]
        expected = raw.text(raw.stream(url, "ensemble", short))
        deadline = time.monotonic() + 4

        def leave(n: int) -> None:
            model = ("ensemble", "tensorrt_llm_bls")[n % 2]
            while time.monotonic() < deadline:
                with suppress(InferenceServerException):
                    raw.stream(url, model, LONG, take=1 + n // 2)

        raw.together(8, leave)
        assert expected in (answer_of(url, short) for _ in range(120))
        assert process.poll() is None


def answer_of(url: str, values: dict) -> str:
    """Return an answer, or after a second nothing while the server is away."""
    with suppress(InferenceServerException, AttributeError):  # an error has no text
        return raw.text(raw.stream(url, "ensemble", values))
    time.sleep(1)
    return ""
