"""`specpipe serve` as its users see it: how it stops, and what it does when its server dies."""

import os
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from specpipe.serve.watch import children
from tests.helpers import raw_requests as raw
from tests.helpers.servers import Package, Run, ready, serving
from tests.helpers.waiting import until

pytestmark = pytest.mark.e2e

LONG = {"text_input": "The quick", "max_tokens": 3000, "stream": True, "end_id": -1}
DISCONNECTS = 6  # of each of eight clients


def answer_while(process: "subprocess.Popen[str]", stderr: Path, *, signals: int) -> object:
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
        until(lambda: "requests in flight" in stderr.read_text())  # two at once are one to Python
    client.join()
    assert process.wait(60) == 0
    return results[-1]


def test_an_answer_in_hand_is_completed_before_the_server_stops(run: Run, tmp_path: Path) -> None:
    with serving(run.workspace.repository, tmp_path) as process:
        assert not isinstance(answer_while(process, tmp_path / "stderr", signals=1), Exception)
    assert "requests in flight: 1" in (tmp_path / "stderr").read_text()


def test_who_stops_twice_does_not_wait_for_answers(run: Run, tmp_path: Path) -> None:
    with serving(run.workspace.repository, tmp_path) as process:
        assert isinstance(answer_while(process, tmp_path / "stderr", signals=2), Exception)


def test_a_crashed_server_is_started_again_as_often_as_asked(run: Run, tmp_path: Path) -> None:
    with serving(run.workspace.repository, tmp_path, "--restarts", "1") as process:
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
    run = package(serving={"loop": loop, "max_queue_size": 3})
    with serving(run.workspace.repository, tmp_path, "--restarts", "20") as process:
        url = ready(process)["grpc"]
        expected = raw.text(raw.stream(url, "ensemble", short))

        def leave(n: int) -> None:
            model = ("ensemble", "tensorrt_llm_bls")[n % 2]
            for _ in range(DISCONNECTS):
                until(lambda: leaves(url, model, take=1 + n // 2), 60)

        raw.together(8, leave)
        until(lambda: answer_of(url, short) == expected, 120)
        assert process.poll() is None


def leaves(url: str, model: str, take: int) -> bool:
    """Disconnect after so many responses; tell whether they came."""
    with suppress(InferenceServerException):  # the server is away
        return not isinstance(raw.stream(url, model, LONG, take=take)[-1], Exception)
    return False


def answer_of(url: str, values: dict) -> str:
    """Return an answer, or nothing while the server is away."""
    with suppress(InferenceServerException, AttributeError):  # an error has no text
        return raw.text(raw.stream(url, "ensemble", values))
    return ""
