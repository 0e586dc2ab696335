"""A server without progress is found, and a busy one is not disturbed; with a fake clock."""

import queue
import threading
from collections.abc import Callable
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from specpipe.core.endpoint import Model, Tensors
from specpipe.runtime.exchange import PROBE_ID
from specpipe.serve.probe import answers_ping, answers_request, answers_stream
from specpipe.serve.progress import (
    LEAST_FAILURES,
    UNCOUNTED,
    Movement,
    Patience,
    Pulse,
    Requests,
    Watch,
    movement,
)

PATIENCE = Patience()


class Clock:
    """A clock that moves when told to, and by `cost` with every question."""

    def __init__(self) -> None:
        self.at, self.cost = 1000.0, 0.0

    def __call__(self) -> float:
        return self.at

    def asks(self, answers: Callable[[], bool]) -> Callable[[], bool]:
        def ask() -> bool:
            self.at += self.cost
            return answers()

        return ask


def run(monitor: Pulse | Requests, clock: Clock, seconds: float) -> str | None:
    """Call a monitor as often as `Watch` does, for so long or until it finds a failure."""
    end = clock.at + seconds
    while clock.at < end:
        clock.at += 0.2
        failure = monitor.failure()
        if failure is not None:
            return failure
    return None


def test_what_answers_is_asked_once_a_period() -> None:
    clock, asked = Clock(), []
    pulse = Pulse("it", clock.asks(lambda: not asked.append(1)), PATIENCE, clock)
    assert run(pulse, clock, 100) is None
    assert len(asked) == pytest.approx(100 / PATIENCE.period_s, abs=2)


@pytest.mark.parametrize("cost", [0.0, PATIENCE.answer_s])
def test_what_does_not_answer_for_long_has_failed(cost: float) -> None:
    clock = Clock()
    clock.cost = cost
    pulse, began = Pulse("the engine", clock.asks(lambda: False), PATIENCE, clock), clock.at
    failure = run(pulse, clock, 200)
    assert failure and failure.startswith("the engine has not answered for 3")
    assert PATIENCE.stalled_s <= clock.at - began <= PATIENCE.stalled_s + PATIENCE.answer_s + 1


def test_an_answer_that_is_late_is_no_failure() -> None:
    clock, answers = Clock(), iter([False, False, False, True] * 40)
    clock.cost = PATIENCE.answer_s  # a long chunk of a prompt: 26 of 30 seconds
    pulse = Pulse("the engine", clock.asks(lambda: next(answers)), PATIENCE, clock)
    assert run(pulse, clock, 1000) is None


def test_a_pause_of_this_machine_is_no_failure_of_the_server() -> None:
    clock, answers = Clock(), [True]
    pulse = Pulse("it", lambda: answers[0], PATIENCE, clock)
    requests = Requests(lambda: None, lambda: answers[0], PATIENCE, clock)
    for monitor in (pulse, requests):
        answers[0] = True
        assert run(monitor, clock, 60) is None
        clock.at += 3600
        answers[0] = False  # what was asked while everything stood still
        assert monitor.failure() is None
        answers[0] = True
        assert run(monitor, clock, 60) is None


def counted(count: int) -> Movement:
    return Movement((str(count),), counts_steps=True)


def test_a_server_whose_counters_move_is_not_asked() -> None:
    clock, looked = Clock(), []

    def look() -> Movement:
        looked.append(1)
        return counted(len(looked))

    requests = Requests(look, lambda: pytest.fail("asked"), PATIENCE, clock)
    assert run(requests, clock, 1000) is None and len(looked) > 100


def test_an_idle_server_is_asked_now_and_then_and_is_left_alone_if_it_answers() -> None:
    clock, asked = Clock(), []
    requests = Requests(
        lambda: counted(7), clock.asks(lambda: not asked.append(1)), PATIENCE, clock
    )
    assert run(requests, clock, 600) is None
    assert 600 / (PATIENCE.quiet_s + PATIENCE.period_s) - 1 <= len(asked) <= 600 / PATIENCE.quiet_s


@pytest.mark.parametrize("cost", [0.0, PATIENCE.answer_s])
@pytest.mark.parametrize("look", [lambda: counted(7), lambda: None])
def test_a_server_that_answers_no_request_and_moves_nothing_has_failed(
    look: Callable[[], Movement | None], cost: float
) -> None:
    clock = Clock()
    clock.cost = cost
    requests, began = Requests(look, clock.asks(lambda: False), PATIENCE, clock), clock.at
    failure = run(requests, clock, 200)
    assert failure and "a request for one token is not answered" in failure
    assert clock.at - began <= PATIENCE.stalled_s + PATIENCE.period_s + PATIENCE.answer_s + 1


def test_a_full_queue_is_no_failure_while_steps_move() -> None:
    """A long prompt: nothing is counted for 25 seconds, and no request is taken meanwhile."""
    clock = Clock()
    began = clock.at
    requests = Requests(
        lambda: counted(int((clock.at - began) // 25)), lambda: False, PATIENCE, clock
    )
    assert run(requests, clock, 2000) is None


def test_a_server_that_counts_whole_requests_only_gets_ten_times_the_patience() -> None:
    clock, began = Clock(), 1000.0
    whole = Movement(('nv_inference_request_success{model="x"} 3',), counts_steps=False)
    requests = Requests(lambda: whole, lambda: False, PATIENCE, clock)
    assert run(requests, clock, 10_000)
    assert clock.at - began >= UNCOUNTED * PATIENCE.stalled_s


def test_shorter_patience_leaves_time_for_three_requests() -> None:
    for stalled in (1.0, 5.0, 30.0, 600.0):
        patience = Patience.of(stalled)
        assert patience.quiet_s + LEAST_FAILURES * patience.answer_s <= stalled + 1e-9


def test_only_what_work_moves_counts_as_movement() -> None:
    idle = ["nv_cpu_utilization 0.5", 'specpipe_requests_in_flight{model="x"} 1']
    steps = ['specpipe_steps_total{method="m",model="tensorrt_llm"} 5']
    late = ['specpipe_steps_total{method="m",model="ensemble"} 5']  # once an answer is complete
    gpu = ['nv_trt_llm_general_metrics{general_type="iteration_counter",model="x"} 9']
    whole = ['nv_inference_request_success{model="x",version="1"} 3']
    assert movement(idle) == Movement((), counts_steps=False)
    assert movement([*idle, *steps]) == Movement(tuple(steps), counts_steps=True)
    assert movement([*gpu, *whole]).counts_steps
    assert not movement(whole).counts_steps and not movement(late).counts_steps


class Broken:
    """A monitor with a mistake."""

    what = "the moon"

    def failure(self) -> str | None:
        raise ZeroDivisionError("a mistake")


class Found:
    """A monitor that has found something."""

    what = "something"

    def failure(self) -> str | None:
        return "it hangs"


def test_a_mistake_of_ours_ends_no_server() -> None:
    told: queue.Queue[str] = queue.Queue()
    with Watch([Broken()], told.put) as watch:
        assert told.get(timeout=30) == (
            "the moon is not watched any more: ZeroDivisionError: a mistake"
        )
        assert watch.failure() is None


def test_a_failure_is_found_whatever_the_other_monitors_wait_for() -> None:
    waits, over = threading.Event(), threading.Event()

    class Waits:
        what = "something else"

        def failure(self) -> str | None:
            waits.set()
            over.wait()
            return None

    with Watch([Waits(), Found()], print) as watch:
        assert waits.wait(30)
        while watch.failure() is None:
            pass
        assert watch.failure() == "it hangs"
    over.set()


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A gRPC front that answers streams as told, and keeps what it was sent."""

    def __init__(self, answer: str | None) -> None:
        self.answer, self.sent, self.over = answer, [], threading.Event()

    def ModelStreamInfer(self, requests, context):  # noqa: N802
        for request in requests:
            self.sent.append(request)
            if self.answer is None:
                self.over.wait(60)
                return
            yield service_pb2.ModelStreamInferResponse(error_message=self.answer)


@pytest.fixture
def front():
    """Return a function that starts a gRPC front with one answer, and returns it and its URL."""
    running = []

    def start(answer: str | None) -> tuple[Service, str]:
        server, service = grpc.server(futures.ThreadPoolExecutor(4)), Service(answer)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        running.append((server, service))
        return service, f"127.0.0.1:{port}"

    yield start
    for server, service in running:
        service.over.set()
        server.stop(None).wait()


MODEL = Model("m", Tensors("text_input", "max_tokens", "stream", "exclude", "text_output"))
ANSWERS = [
    ("Request for unknown model: 'specpipe-no-model' is not found", True),
    ("INVALID_ARG: the prompt is too long", True),
    ("UNAVAILABLE: the server is busy: 3 requests are waiting, which is the limit", False),
    ("UNAVAILABLE: the engine is not running", False),
    (None, False),
]


@pytest.mark.parametrize(("answer", "moves"), ANSWERS)
def test_what_an_answer_to_a_request_of_ours_means(front, answer: str | None, moves: bool) -> None:
    service, url = front(answer)
    assert answers_stream(url, 1) == moves
    assert answers_request(url, MODEL, 1) == moves
    assert [request.id for request in service.sent] == ["", PROBE_ID]


def test_nobody_answers_where_nobody_listens(tmp_path: Path) -> None:
    assert not answers_stream("127.0.0.1:1", 1)
    assert not answers_request("127.0.0.1:1", MODEL, 1)
    assert not answers_ping(tmp_path / "socket", 0.5)
