"""Keeping a server: restarts, the wait for answers, and what counts as whole; without Triton."""

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from specpipe.core.errors import StageFailed
from specpipe.serve.address import Address, free_address
from specpipe.serve.keep import HOUR_SECONDS, RestartBudget, StopRequest, keep_serving
from specpipe.serve.progress import Patience
from specpipe.serve.tritonserver import RunningServer
from specpipe.serve.watch import children, count_in_hand, describe_end, requests_in_hand
from tests.helpers.waiting import until

METRICS = """\
# HELP specpipe_requests_in_flight Requests that are being answered
specpipe_requests_in_flight{model="ensemble"} 2
specpipe_requests_in_flight{model="tensorrt_llm_bls"} 1
specpipe_requests_total{model="ensemble"} 40
nv_inference_pending_request_count{model="ensemble",version="1"} 4
"""


def start_idle() -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])


class Start:
    """Starts a process in the place of a server, and counts how often."""

    def __init__(self, log: Path, address: Address | None = None) -> None:
        self.log, self.address = log, address or free_address()
        self.count = 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[RunningServer]:
        self.count += 1
        self.log.write_text(f"start {self.count}")
        process = start_idle()
        try:
            yield RunningServer(self.address, process, self.log)
        finally:
            process.kill()
            process.wait()


def kill(endpoint: RunningServer) -> None:
    endpoint.process.kill()
    endpoint.process.wait()


def test_a_server_that_dies_is_an_error_with_its_signal_and_its_log(tmp_path: Path) -> None:
    start = Start(tmp_path / "log")
    with pytest.raises(StageFailed, match=r"was ended by SIGKILL(.|\n)*log; --restarts") as e:
        keep_serving(start, StopRequest(), RestartBudget(0), 0, on_ready=kill, report=print)
    assert start.count == 1 and e.value.exit_code == 4


def test_a_server_that_dies_is_started_again_while_the_budget_lasts(tmp_path: Path) -> None:
    start, told = Start(tmp_path / "server.log"), []
    with pytest.raises(StageFailed, match="SIGKILL, after 2 restarts in an hour"):
        keep_serving(start, StopRequest(), RestartBudget(2), 0, on_ready=kill, report=told.append)
    assert start.count == 3 and len(told) == 2
    assert "SIGKILL; its output is in" in told[0] and "server.crashed.log" in told[0]
    assert (tmp_path / "server.crashed.log").read_text() == "start 2"
    assert (tmp_path / "server.log").read_text() == "start 3"


def test_a_restart_counts_for_an_hour() -> None:
    clock = [0.0]
    budget = RestartBudget(2, now=lambda: clock[0])
    assert [budget.spend() for _ in range(2)] == [True, True]
    clock[0] = HOUR_SECONDS - 1
    assert not budget.spend()
    clock[0] = 2 * HOUR_SECONDS
    assert budget.spend()


def test_a_server_that_is_not_wanted_any_more_when_it_is_ready_is_not_announced(
    tmp_path: Path,
) -> None:
    stop = StopRequest()
    stop.repeat()
    ready: list[RunningServer] = []
    keep_serving(
        Start(tmp_path / "log"), stop, RestartBudget(0), 60, on_ready=ready.append, report=print
    )
    assert not ready


class Metrics:
    """A metrics port that reports these numbers of in-flight requests in turn; the last repeats."""

    def __init__(self, counts: list[int]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                count = counts.pop(0) if len(counts) > 1 else counts[0]
                self.send_response(200)
                self.end_headers()
                self.wfile.write(f'specpipe_requests_in_flight{{model="x"}} {count}\n'.encode())

            def log_message(self, *args: object) -> None:
                pass

        self.left = counts
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = Address(metrics_port=self.server.server_port)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.slow
def test_a_server_is_stopped_once_nothing_has_been_in_hand_for_two_looks(tmp_path: Path) -> None:
    stop, told = StopRequest(), []
    with Metrics([2, 0, 1, 0, 0, 7]) as metrics:
        start = Start(tmp_path / "log", metrics.address)
        keep_serving(
            start, stop, RestartBudget(0), 60, on_ready=lambda e: stop.repeat(), report=told.append
        )
        assert metrics.left == [7]
    assert told == ["requests in flight: 2; they have 60 s; stop again to end them"]


def test_who_stops_again_does_not_wait(tmp_path: Path) -> None:
    stop = StopRequest()
    with Metrics([1]) as metrics:
        start = Start(tmp_path / "log", metrics.address)
        keep_serving(
            start, stop, RestartBudget(0), 600,
            on_ready=lambda e: stop.repeat(), report=lambda text: stop.repeat(),
        )  # fmt: skip


def test_requests_count_whether_they_are_answered_or_wait_in_tritons_queue() -> None:
    assert count_in_hand(METRICS.splitlines()) == 2 + 1 + 4
    assert requests_in_hand(free_address()) == 0


def test_a_server_without_the_process_of_a_model_is_not_whole(tmp_path: Path) -> None:
    model = tmp_path / "tensorrt_llm/1/model.py"
    model.parent.mkdir(parents=True)
    model.write_text("import sys\nprint('up', flush=True)\nsys.stdin.read()")
    script = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, {str(model)!r}])\n"
        "import signal; signal.pause()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as server:
        assert server.stdin and server.stdout and server.stdout.readline() == b"up\n"
        found = children(server.pid)
        endpoint = RunningServer(free_address(), server, tmp_path / "log", found)
        assert list(found.values()) == ["tensorrt_llm"] and endpoint.failure() is None
        server.stdin.close()  # the model ends, and its parent does not wait for it: a zombie
        assert until(endpoint.failure) == "the process of the model tensorrt_llm ended by itself"
        server.kill()


@pytest.mark.parametrize(
    ("code", "words"),
    [(-signal.SIGSEGV, "was ended by SIGSEGV"), (1, "ended by itself with exit code 1")],
)
def test_how_a_process_ended_is_said_in_words(code: int, words: str) -> None:
    assert describe_end(code) == words


def test_a_server_that_hangs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"(?s)has not answered for \d s.*--restarts"):
        keep_serving(
            Start(tmp_path / "log"), StopRequest(), RestartBudget(0), 0,
            on_ready=lambda endpoint: None, report=print, patience=Patience.of(0.3),
        )  # fmt: skip
