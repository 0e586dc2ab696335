"""From a text model to the engine: what arrives, what a cancellation means, what goes wrong."""

import contextlib
import errno
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from specpipe.core.contracts import Sampling
from specpipe.core.errors import Unsupported
from specpipe.core.guide import Guide
from specpipe.runtime import channel, engine_client, remote
from specpipe.runtime.channel import MOST_CONNECTIONS, EngineSocket
from specpipe.runtime.engine_client import EngineClient, ping_engine
from specpipe.runtime.exchange import (
    PING,
    Counters,
    EngineProgress,
    Heartbeat,
    Request,
    dump_cancel,
    dump_submit,
    load_call,
    load_request,
)
from specpipe.runtime.failures import Cancelled, EngineError, QueueFull
from specpipe.runtime.remote import Peer, RemoteListener
from specpipe.speculate.decode import Limits, Step
from tests.helpers.waiting import until

REQUEST = Request(
    request_id="a",
    prompt=(1, 2, 3),
    sampling=Sampling(temperature=0.5, top_k=7, end_ids=(2, 0), bad_words=((4, 5), (6,)), seed=9),
    limits=Limits(12, ((7, 8),)),
    num_draft_tokens=3,
    log_probs=True,
    guide=Guide("regex", 'a"+é'),
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


CLIENTS: list[EngineClient] = []


@pytest.fixture(autouse=True)
def close_clients() -> Iterator[None]:
    yield
    while CLIENTS:
        CLIENTS.pop().close()


def client_of(path: Path) -> EngineClient:
    CLIENTS.append(EngineClient(path))
    return CLIENTS[-1]


@dataclass
class Answer:
    """What one request gets, in a thread; `most` steps complete it."""

    client: EngineClient
    request: Request = REQUEST
    most: int = 1_000_000
    steps: list[EngineProgress] = field(default_factory=list)
    cancelled: bool = False
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.client.ask(self.request, self._take, lambda: self.cancelled, poll_s=0.01)
        except Exception as error:
            self.error = error

    def _take(self, step: EngineProgress) -> bool:
        self.steps.append(step)
        return len(self.steps) >= self.most

    def result(self) -> list[EngineProgress]:
        self.thread.join(20)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.steps


def ask(path: Path) -> list[EngineProgress]:
    """Ask on a connection of its own."""
    client = client_of(path)
    try:
        return Answer(client).result()
    finally:
        client.close()


def answer(request: Request, listener: RemoteListener) -> None:
    counters = Counters(arrival_ns=1)
    for step in STEPS:
        counters.add(step)
        listener.on_step(step, counters)
        listener.peer.flush()


def test_a_request_survives_the_way() -> None:
    assert load_request(load_call(dump_submit(7, REQUEST))) == REQUEST


def test_steps_arrive_with_their_counters(serve: Serve) -> None:
    found = ask(serve(answer))
    assert [(p.tokens, p.log_probs, p.finish) for p in found] == [
        (s.tokens, s.log_probs, s.finish) for s in STEPS
    ]
    assert [p.counters.output_tokens for p in found] == [2, 3]
    assert [p.counters.draft_tokens for p in found] == [3, 6]
    assert found[0].counters.arrival_ns == 1
    assert 1 < found[0].counters.first_token_ns < found[1].counters.last_token_ns


@pytest.mark.parametrize(
    ("error", "code"),
    [(QueueFull(3), "UNAVAILABLE"), (Unsupported("no"), "UNSUPPORTED"), (KeyError(1), "INTERNAL")],
)
def test_an_error_keeps_its_code_and_sentence(serve: Serve, error: Exception, code: str) -> None:
    def refuse(request: Request, listener: RemoteListener) -> None:
        raise error

    with pytest.raises(EngineError) as caught:
        ask(serve(refuse))
    assert caught.value.code == code
    assert str(error) in str(caught.value)


class Engine:
    """Takes requests, and emits a step for each of those that a test names."""

    def __init__(self) -> None:
        self.taken: list[RemoteListener] = []

    def submit(self, request: Request, listener: RemoteListener) -> None:
        self.taken.append(listener)

    def round(self, *numbers: int, step: Step = STEPS[0]) -> None:
        for number in numbers:
            self.taken[number].on_step(step, Counters(0))
        for peer in {self.taken[number].peer for number in numbers}:
            peer.flush()


@pytest.fixture
def engine() -> Engine:
    return Engine()


def begin(engine: Engine, client: EngineClient, most: int = 1_000_000) -> Answer:
    """Return an answer whose request the engine has taken."""
    count = len(engine.taken)
    made = Answer(client, most=most)
    until(lambda: len(engine.taken) > count or made.error)
    return made


def test_an_answer_that_is_complete_cancels_what_the_engine_would_add(
    serve: Serve, engine: Engine
) -> None:
    asked = begin(engine, client_of(serve(engine.submit)), most=1)
    (taken,) = engine.taken
    assert not taken.is_cancelled()
    engine.round(0)
    assert len(asked.result()) == 1
    until(taken.is_cancelled)
    engine.round(0, step=STEPS[1])  # does not raise: the engine must go on
    assert len(asked.steps) == 1


def test_a_client_that_is_gone_ends_the_wait(serve: Serve, engine: Engine) -> None:
    asked = begin(engine, client_of(serve(engine.submit)))
    asked.cancelled = True
    with pytest.raises(Cancelled):
        asked.result()
    until(engine.taken[0].is_cancelled)
    engine.taken[0].on_cancelled()


def test_a_closed_connection_cancels_all_its_requests(serve: Serve, engine: Engine) -> None:
    client = client_of(serve(engine.submit))
    asked = [begin(engine, client) for _ in range(2)]
    other = begin(engine, client_of(client.path))
    client.close()
    for one in asked:
        with pytest.raises(EngineError, match="in the middle"):
            one.result()
    until(engine.taken[0].is_cancelled)
    assert engine.taken[1].is_cancelled() and not engine.taken[2].is_cancelled()
    engine.round(2, step=STEPS[1])
    assert len(other.result()) == 1


def test_the_steps_of_a_round_arrive_in_one_message(serve: Serve, engine: Engine) -> None:
    with connect(serve(engine.submit)) as connection:
        connection.sendall(dump_submit(5, REQUEST) + dump_submit(9, REQUEST))
        until(lambda: len(engine.taken) == 2)
        engine.round(0, 1)
        (line,) = connection.recv(4096).splitlines()
        assert [entry[:2] for entry in json.loads(line)] == [[5, [5, 6]], [9, [5, 6]]]


def test_requests_of_one_process_share_a_connection(serve: Serve, engine: Engine) -> None:
    client = client_of(serve(engine.submit))
    asked = [begin(engine, client) for _ in range(3)]
    assert len({listener.peer for listener in engine.taken}) == 1
    engine.round(0, 1, 2, step=STEPS[1])
    assert [len(one.result()) for one in asked] == [1, 1, 1]
    until(lambda: not engine.taken[0].peer.requests)


def test_cancelling_one_request_leaves_the_others(serve: Serve, engine: Engine) -> None:
    client = client_of(serve(engine.submit))
    gone, other = begin(engine, client), begin(engine, client)
    gone.cancelled = True
    until(engine.taken[0].is_cancelled)
    engine.round(0, 1)
    engine.round(0, 1, step=STEPS[1])
    assert len(other.result()) == 2 and not engine.taken[1].is_cancelled()
    with pytest.raises(Cancelled):
        gone.result()
    assert not gone.steps


def test_an_answer_that_fails_leaves_the_others(serve: Serve, engine: Engine) -> None:
    client, failed = client_of(serve(engine.submit)), list[Exception]()

    def take(step: EngineProgress) -> bool:
        raise RuntimeError("no text")

    def fail() -> None:
        try:
            client.ask(REQUEST, take, lambda: False, poll_s=0.01)
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=fail)
    thread.start()
    until(lambda: engine.taken)
    other = begin(engine, client)
    engine.round(0, 1)
    thread.join(10)
    assert str(failed[0]) == "no text"
    until(engine.taken[0].is_cancelled)
    engine.round(1, step=STEPS[1])
    assert len(other.result()) == 2


def test_steps_of_every_request_arrive_in_order(serve: Serve, engine: Engine) -> None:
    client, rounds = client_of(serve(engine.submit)), 500
    asked = [begin(engine, client) for _ in range(4)]
    for number in range(rounds):
        engine.round(0, 1, 2, 3, step=Step((number,), 0, 0))
    engine.round(0, 1, 2, 3, step=Step((rounds,), 0, 0, "length"))
    for one in asked:
        assert [p.tokens for p in one.result()] == [(n,) for n in range(rounds + 1)]


def peer_and_reader() -> tuple[Peer, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    return Peer(ours), theirs


def test_a_reader_that_sleeps_does_not_hold_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MOST_UNREAD", 10_000)
    peer, theirs = peer_and_reader()
    listeners = [peer.begin(1), peer.begin(2)]
    with theirs:
        for _ in range(20_000):  # far more than a socket buffer; a waiting send would never return
            listeners[0].on_step(STEPS[0], Counters(0))
            peer.flush()
        assert all(listener.is_cancelled() for listener in listeners)
        peer.close()


def test_a_reader_that_reads_nothing_for_long_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE_SECONDS", 0.05)
    peer, theirs = peer_and_reader()
    listener = peer.begin(1)
    with theirs:
        for _ in range(3_000):
            listener.on_step(STEPS[0], Counters(0))
            peer.flush()
        until(listener.is_cancelled)
        peer.close()


def test_a_reader_that_is_late_gets_everything_in_order() -> None:
    peer, theirs = peer_and_reader()
    listener, count = peer.begin(1), 20_000
    for number in range(count):
        listener.on_step(Step((number,), 0, 0), Counters(0))
        peer.flush()
    assert not listener.is_cancelled()
    found: list[int] = []
    with theirs, theirs.makefile("rb") as lines:
        while len(found) < count:
            found += [entry[1][0] for entry in json.loads(next(lines))]
    assert found == list(range(count))
    peer.close()


def test_an_engine_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="not running") as caught:
        ask(tmp_path / "nothing.sock")
    assert caught.value.code == "UNAVAILABLE"


def test_an_engine_that_dies_is_unavailable_for_all_its_requests(
    serve: Serve, engine: Engine
) -> None:
    client = client_of(serve(engine.submit))
    asked = [begin(engine, client) for _ in range(2)]
    engine.round(0, 1)
    engine.taken[0].peer.close()
    for one in asked:
        with pytest.raises(EngineError, match="in the middle") as caught:
            one.result()
        assert caught.value.code == "UNAVAILABLE" and len(one.steps) == 1


def failure(client: EngineClient) -> str:
    """Ask an engine that has ended; return the reason why there is no answer."""
    with pytest.raises(EngineError) as caught:
        Answer(client).result()
    return str(caught.value)


def test_a_client_reaches_the_engine_that_follows_a_lost_one(tmp_path: Path) -> None:
    client = client_of(tmp_path / "engine" / "engine.sock")
    for _ in range(3):
        one = EngineSocket(client.path, answer, nobody, MOST_BYTES)
        one.start()
        for _ in range(2):
            assert len(Answer(client).result()) == len(STEPS)
        one.close()
        until(lambda: "not running" in failure(client))


def test_nonsense_is_answered_with_an_error(serve: Serve) -> None:
    with connect(serve(answer), b"nonsense\n") as connection:
        assert b"INTERNAL" in connection.recv(4096)
        assert connection.recv(4096) == b""


def test_a_submission_without_its_fields_leaves_the_others(serve: Serve) -> None:
    with connect(serve(answer), b'{"submit":3}\n' + dump_submit(4, REQUEST)) as connection:
        lines = connection.makefile("rb")
        assert json.loads(next(lines))[0][:2] == [3, "INTERNAL"]
        assert json.loads(next(lines))[0][0] == 4


@pytest.mark.parametrize("number", [0, 4, "x"])
def test_a_number_that_is_not_new_ends_the_connection(
    serve: Serve, engine: Engine, number: object
) -> None:
    path = serve(engine.submit)
    lines = dump_submit(4, REQUEST) + dump_submit(number, REQUEST)  # type: ignore[arg-type]
    with connect(path, lines) as connection:
        refusal = json.loads(connection.recv(4096))[0]
        assert refusal[:2] == [0, "INVALID_ARG"] and "not the number of a new" in refusal[2]
        until(engine.taken[0].is_cancelled)


def test_requests_beyond_the_bound_of_a_connection_are_refused(
    serve: Serve, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MOST_IN_FLIGHT", 1)
    with connect(serve(engine.submit), dump_submit(1, REQUEST)) as connection:
        connection.sendall(dump_submit(2, REQUEST))
        assert json.loads(connection.recv(4096))[0][:2] == [2, "UNAVAILABLE"]
        connection.sendall(dump_cancel(1) + dump_submit(3, REQUEST))
        until(lambda: len(engine.taken) == 2)
        assert engine.taken[0].is_cancelled() and not engine.taken[1].is_cancelled()


def test_a_socket_of_a_dead_server_is_replaced(tmp_path: Path, serve: Serve) -> None:
    folder = tmp_path / "engine"
    folder.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(folder / "engine.sock"))
    assert len(ask(serve(answer))) == len(STEPS)


def test_nothing_is_left_of_a_folder_that_the_engine_made(tmp_path: Path) -> None:
    path = tmp_path / "engine" / "engine.sock"
    one = EngineSocket(path, answer, nobody, MOST_BYTES)
    one.start()
    assert len(ask(path)) == len(STEPS)
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
    assert len(ask(path)) == len(STEPS)
    assert not failures


def fail_to_start(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_client_that_cannot_start_its_thread_refuses_one_request(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(serve(answer))
    with monkeypatch.context() as patched:
        patched.setattr(engine_client, "start_thread", busy)
        with pytest.raises(EngineError, match="busy: it cannot start a thread"):
            Answer(client).result()
    assert len(Answer(client).result()) == len(STEPS)


def busy(run: Callable[[], None]) -> None:
    raise EngineError("UNAVAILABLE", "the server is busy: it cannot start a thread: none")


def test_a_thread_that_cannot_start_refuses_its_connection_only(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = serve(answer)
    with connect(path, dump_submit(1, REQUEST)) as first:
        assert len(first.recv(4096)) > 0
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", fail_to_start)
            with connect(path, dump_submit(1, REQUEST)) as refused:
                entry = json.loads(refused.recv(4096))[0]
            assert entry[:2] == [0, "UNAVAILABLE"]
            assert "busy: it cannot start a thread" in entry[2]
        first.sendall(dump_submit(2, REQUEST))
        assert len(first.recv(4096)) > 0
    for _ in range(2 * MOST_CONNECTIONS):  # what was refused is not counted as open
        assert len(ask(path)) == len(STEPS)


def connect(path: Path, line: bytes = b"") -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(str(path))
    with contextlib.suppress(BrokenPipeError):  # refused already
        connection.sendall(line)
    return connection


def test_a_burst_of_requests_is_answered(serve: Serve) -> None:
    client, count = client_of(serve(answer)), 4 * MOST_CONNECTIONS
    asked = [Answer(client) for _ in range(count)]
    assert [len(one.result()) for one in asked] == [len(STEPS)] * count


def test_a_burst_of_more_connections_than_threads_is_answered(serve: Serve) -> None:
    path, count = serve(answer), 4 * MOST_CONNECTIONS
    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(lambda _: len(ask(path)), range(count)))
    assert found == [len(STEPS)] * count


def test_more_connections_than_threads_are_refused_while_they_are_open(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "ROOM_SECONDS", 0.05)
    path = serve(answer)
    slow = [connect(path, b"{") for _ in range(MOST_CONNECTIONS)]
    with pytest.raises(EngineError, match=f"busy: {MOST_CONNECTIONS} connections are open"):
        ask(path)
    for connection in slow:
        connection.close()


def test_who_is_refused_before_the_request_is_sent_learns_why(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(tmp_path / "s"))
        engine.listen(1)

        def refuse() -> None:
            connection, _ = engine.accept()
            peer = Peer(connection)
            peer.refuse(EngineError("UNAVAILABLE", "busy today"))
            peer.close()

        thread = threading.Thread(target=refuse)
        thread.start()
        large = replace(REQUEST, prompt=(1,) * 200_000)  # more than a socket takes at once
        with pytest.raises(EngineError, match="busy today") as caught:
            Answer(client_of(tmp_path / "s"), large).result()
        assert caught.value.code == "UNAVAILABLE"
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
            ask(tmp_path / "s")
        waiting.close()
    assert caught.value.code == "UNAVAILABLE"


def test_an_engine_that_reads_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_client, "PATIENCE_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen(1)
        large = replace(REQUEST, prompt=(1,) * 400_000)
        with pytest.raises(EngineError, match="has not taken the request") as caught:
            Answer(client_of(tmp_path / "s"), large).result()
    assert caught.value.code == "UNAVAILABLE"


def test_a_connection_may_rest_between_two_requests(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "PATIENCE_SECONDS", 0.2)
    path = serve(answer)
    with connect(path, dump_submit(1, REQUEST)) as connection:
        lines = connection.makefile("rb")
        assert [next(lines) for _ in STEPS]
        with connect(path, b"{") as hasty:  # which rests less long, and too long
            assert b"did not arrive" in hasty.recv(4096)
        connection.sendall(dump_submit(2, REQUEST))
        assert json.loads(next(lines))[0][0] == 2


def test_an_answer_that_was_not_asked_for_is_ignored(serve: Serve, engine: Engine) -> None:
    path = serve(engine.submit)
    with connect(path, dump_cancel(17) + dump_submit(1, REQUEST)) as connection:
        until(lambda: engine.taken)
        assert not engine.taken[0].is_cancelled()
        connection.close()
        until(engine.taken[0].is_cancelled)


def test_another_user_is_not_answered(serve: Serve) -> None:
    with connect(serve(answer, uid=os.geteuid() + 1), dump_submit(1, REQUEST)) as connection:  # type: ignore[call-arg]
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


def test_a_ping_on_a_connection_with_requests_is_answered(serve: Serve, engine: Engine) -> None:
    beat = Heartbeat(rounds=7, active=1, waiting=2)
    path = serve(engine.submit, probe=lambda tell: tell(beat))  # type: ignore[call-arg]
    with connect(path, dump_submit(1, REQUEST) + PING) as connection:
        assert json.loads(connection.recv(4096)) == {"rounds": 7, "active": 1, "waiting": 2}
        engine.round(0)
        assert json.loads(connection.recv(4096))[0][0] == 1


def test_a_ping_of_nobody_says_so(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="not running"):
        ping_engine(tmp_path / "nothing", timeout_s=1)
