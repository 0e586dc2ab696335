"""From a text model to the engine: what arrives, what a closed end means, what goes wrong."""

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from specpipe.contracts import Sampling
from specpipe.errors import Unsupported
from specpipe.repository.models import channel, engine_client
from specpipe.repository.models.channel import MOST_ARRIVING, EngineSocket, RemoteListener
from specpipe.repository.models.engine_client import ask_engine, ping_engine
from specpipe.repository.models.exchange import (
    Counters,
    Heartbeat,
    Progress,
    Request,
    dump,
    load_request,
)
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


MOST_BYTES = 10_000


def nobody(answer: Callable[[Heartbeat], None]) -> None:
    raise AssertionError("nobody asks")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    sockets = []

    def listen(
        submit: Callable[[Request, RemoteListener], None],
        probe: Callable[[Callable[[Heartbeat], None]], None] = nobody,
        uid: int = os.geteuid(),
    ) -> Path:
        path = tmp_path / "engine" / "engine.sock"
        sockets.append(EngineSocket(path, submit, probe, MOST_BYTES, uid))
        sockets[-1].start()
        return sockets[-1].path

    yield listen
    for one in sockets:
        one.close()
    assert not list(tmp_path.rglob("engine.sock"))


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
    folder = tmp_path / "engine"
    folder.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(folder / "engine.sock"))
    assert len(list(ask(serve(answer)))) == len(STEPS)


def test_nothing_is_left_of_a_folder_that_the_engine_made(tmp_path: Path) -> None:
    path = tmp_path / "engine" / "engine.sock"
    one = EngineSocket(path, answer, nobody, MOST_BYTES)
    one.start()
    assert len(list(ask(path))) == len(STEPS)
    one.close()
    assert not list(tmp_path.iterdir())


class FullOfFiles:
    """A listening socket that cannot accept for a while, as when all file descriptors are used."""

    def __init__(self, real: socket.socket, failures: list[OSError]) -> None:
        self.real, self.failures = real, failures

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            raise self.failures.pop()
        return self.real.accept()

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)


def test_the_socket_survives_that_nothing_can_be_accepted(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [OSError(number, "no") for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS)]
    failures += [ConnectionAbortedError()]
    real = socket.socket
    monkeypatch.setattr(socket, "socket", lambda *kind: FullOfFiles(real(*kind), failures))
    path = serve(answer)
    monkeypatch.undo()
    assert len(list(ask(path))) == len(STEPS)
    assert not failures


def test_a_thread_that_cannot_start_refuses_its_request_only(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = serve(answer)

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        with pytest.raises(EngineError, match="busy: it cannot start a thread") as caught:
            list(ask(path))
    assert caught.value.code == "UNAVAILABLE"
    for _ in range(2 * MOST_ARRIVING):  # what was refused is not counted as arriving
        assert len(list(ask(path))) == len(STEPS)


def connect(path: Path, line: bytes = b"") -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(str(path))
    with contextlib.suppress(BrokenPipeError):  # refused already
        connection.sendall(line)
    return connection


def test_a_burst_of_more_requests_than_threads_is_answered(serve: Serve) -> None:
    path, count = serve(answer), 4 * MOST_ARRIVING
    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(lambda _: len(list(ask(path))), range(count)))
    assert found == [len(STEPS)] * count


def test_more_requests_than_threads_are_refused_while_they_arrive(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "ROOM_SECONDS", 0.05)
    path = serve(answer)
    slow = [connect(path, b"{") for _ in range(MOST_ARRIVING)]
    with pytest.raises(EngineError, match=f"busy: {MOST_ARRIVING} requests are arriving"):
        list(ask(path))
    for connection in slow:
        connection.close()


def test_who_is_refused_before_the_request_is_sent_learns_why(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(tmp_path / "s"))
        engine.listen(1)

        def refuse() -> None:
            connection, _ = engine.accept()
            RemoteListener(connection).on_error(EngineError("UNAVAILABLE", "busy today"))

        thread = threading.Thread(target=refuse)
        thread.start()
        large = replace(REQUEST, prompt=(1,) * 200_000)  # more than a socket takes at once
        with pytest.raises(EngineError, match="busy today"):
            list(ask_engine(tmp_path / "s", large, lambda: False, poll_s=0.01))
        thread.join()


def test_a_request_that_is_too_long_is_refused_before_it_is_read(serve: Serve) -> None:
    with connect(serve(answer)) as connection:
        with pytest.raises(OSError):
            for _ in range(1000):
                connection.sendall(b" " * MOST_BYTES)
    with connect(serve(answer), b" " * (MOST_BYTES + 1)) as connection:
        refusal = connection.recv(4096)
    assert b"INVALID_ARG" in refusal and b"longer than 10000 bytes" in refusal


def test_a_request_that_does_not_come_is_not_waited_for(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "PATIENCE_SECONDS", 0.05)
    with connect(serve(answer), b"{") as connection:
        assert b"did not arrive" in connection.recv(4096)


def test_an_engine_that_accepts_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_client, "PATIENCE_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as full:
        full.bind(str(tmp_path / "s"))
        full.listen(0)
        waiting = connect(tmp_path / "s")
        with pytest.raises(EngineError, match="has not taken the request") as caught:
            list(ask(tmp_path / "s"))
        waiting.close()
    assert caught.value.code == "UNAVAILABLE"


def test_a_listener_that_wrote_more_than_a_request_can_still_leave() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(b"more")
        listener = RemoteListener(ours)
        assert not listener.is_cancelled()
        theirs.close()
        assert listener.is_cancelled()


def test_another_user_is_not_answered(serve: Serve) -> None:
    with connect(serve(answer, uid=os.geteuid() + 1), dump(REQUEST)) as connection:  # type: ignore[call-arg]
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(4096) == b""


def test_a_ping_is_answered_with_the_heartbeat(serve: Serve) -> None:
    beat = Heartbeat(rounds=7, active=1, waiting=2)
    path = serve(answer, probe=lambda tell: tell(beat))  # type: ignore[call-arg]
    assert ping_engine(path, timeout_s=10) == beat


def test_a_ping_of_an_engine_that_stands_still_fails_in_time(serve: Serve) -> None:
    asked: list[Callable[[Heartbeat], None]] = []
    path = serve(answer, probe=asked.append)  # type: ignore[call-arg]
    with pytest.raises(EngineError, match="thread has not answered") as caught:
        ping_engine(path, timeout_s=0.05)
    asked[0](Heartbeat(0, 0, 0))  # too late; does not raise
    assert caught.value.code == "UNAVAILABLE"


def test_a_ping_of_nobody_says_so(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="not running"):
        ping_engine(tmp_path / "nothing", timeout_s=1)
