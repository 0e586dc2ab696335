"""From a text model to the engine: what arrives, what a closed end means, what goes wrong."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from specpipe.contracts import Sampling
from specpipe.errors import Unsupported
from specpipe.repository.models.channel import EngineSocket, RemoteListener, ask_engine
from specpipe.repository.models.exchange import Counters, Progress, Request, dump, load_request
from specpipe.repository.models.failures import Cancelled, EngineError, QueueFull
from specpipe.speculate.decode import Limits, Step

REQUEST = Request(
    request_id="a",
    prompt=(1, 2, 3),
    sampling=Sampling(temperature=0.5, top_k=7, end_ids=(2, 0), bad_words=((4, 5), (6,)), seed=9),
    limits=Limits(12, ((7, 8),)),
    num_draft_tokens=3,
    log_probs=True,
)
STEPS = [Step((5, 6), 3, 1, log_probs=(-0.1, -0.2)), Step((7,), 3, 0, "length", (-0.3,))]

Serve = Callable[[Callable[[Request, RemoteListener], None]], Path]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    sockets = []

    def listen(submit: Callable[[Request, RemoteListener], None]) -> Path:
        sockets.append(EngineSocket(tmp_path / "engine.sock", submit))
        sockets[-1].start()
        return sockets[-1].path

    yield listen
    for one in sockets:
        one.close()
    assert not (tmp_path / "engine.sock").exists()


def ask(path: Path, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Progress]:
    return ask_engine(path, REQUEST, cancelled, poll_s=0.01)


def answer(request: Request, listener: RemoteListener) -> None:
    counters = Counters(arrival_ns=1)
    for step in STEPS:
        counters.add(step)
        listener.on_step(step, counters)


def test_a_request_survives_the_way() -> None:
    assert load_request(dump(REQUEST)) == REQUEST


def test_steps_arrive_with_their_counters(serve: Serve) -> None:
    found = list(ask(serve(answer)))
    assert [(p.tokens, p.log_probs, p.finish) for p in found] == [
        (s.tokens, s.log_probs, s.finish) for s in STEPS
    ]
    assert [p.counters.output_tokens for p in found] == [2, 3]


@pytest.mark.parametrize(
    ("error", "code"),
    [(QueueFull(3), "UNAVAILABLE"), (Unsupported("no"), "UNSUPPORTED"), (KeyError(1), "INTERNAL")],
)
def test_an_error_keeps_its_code_and_sentence(serve: Serve, error: Exception, code: str) -> None:
    def refuse(request: Request, listener: RemoteListener) -> None:
        raise error

    with pytest.raises(EngineError) as caught:
        list(ask(serve(refuse)))
    assert caught.value.code == code
    assert str(error) in str(caught.value)


def test_a_closed_end_is_a_cancellation(serve: Serve) -> None:
    taken: list[RemoteListener] = []

    def begin(request: Request, listener: RemoteListener) -> None:
        taken.append(listener)
        listener.on_step(STEPS[0], Counters(0))

    steps = ask(serve(begin))
    next(steps)
    assert not taken[0].is_cancelled()
    steps.close()  # type: ignore[attr-defined]
    assert taken[0].is_cancelled()
    taken[0].on_step(STEPS[1], Counters(0))  # does not raise: the engine must go on


def test_a_client_that_is_gone_ends_the_wait(serve: Serve) -> None:
    taken: list[RemoteListener] = []
    steps = ask(serve(lambda request, listener: taken.append(listener)), lambda: bool(taken))
    with pytest.raises(Cancelled):
        next(steps)
    assert taken[0].is_cancelled()
    taken[0].on_cancelled()


def test_a_reader_that_sleeps_does_not_hold_the_engine() -> None:
    ours, theirs = socket.socketpair()
    listener = RemoteListener(ours)
    with ours, theirs:
        for _ in range(20_000):  # far more than a socket buffer; a waiting send would never return
            listener.on_step(STEPS[0], Counters(0))
        assert listener.is_cancelled()


def test_an_engine_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="not running") as caught:
        next(ask(tmp_path / "nothing.sock"))
    assert caught.value.code == "UNAVAILABLE"


def test_an_engine_that_dies_is_unavailable(serve: Serve) -> None:
    def die(request: Request, listener: RemoteListener) -> None:
        listener.on_step(STEPS[0], Counters(0))
        listener.connection.close()

    steps = ask(serve(die))
    next(steps)
    with pytest.raises(EngineError, match="in the middle"):
        next(steps)


def test_nonsense_is_answered_with_an_error(serve: Serve) -> None:
    path = serve(answer)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b"nonsense\n")
        assert b"INTERNAL" in connection.recv(4096)


def test_a_socket_of_a_dead_server_is_replaced(tmp_path: Path, serve: Serve) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(tmp_path / "engine.sock"))
    assert len(list(ask(serve(answer)))) == len(STEPS)
