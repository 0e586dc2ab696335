"""Threads of requests are bounded, and what may fail without harm does."""

import threading

import pytest

from specpipe.runtime.failures import EngineError
from specpipe.runtime.guards import Threads, harmless


def test_threads_beyond_the_bound_are_refused_until_one_ends() -> None:
    threads, go = Threads(2, "requests are in flight"), threading.Event()
    before = set(threading.enumerate())

    def wait() -> None:
        assert go.wait(10)

    for _ in range(2):
        threads.start(wait)
    with pytest.raises(
        EngineError, match="busy: 2 requests are in flight, which is the limit"
    ) as e:
        threads.start(wait)
    assert e.value.code == "UNAVAILABLE"
    started = set(threading.enumerate()) - before
    go.set()
    for thread in started:
        thread.join(10)
    threads.start(wait)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_fails_gives_its_place_back() -> None:
    threads, before = Threads(1, "requests are in flight"), set(threading.enumerate())
    go = threading.Event()

    def fail() -> None:
        go.wait(10)
        raise RuntimeError("broken")

    threads.start(fail)
    (failing,) = set(threading.enumerate()) - before
    go.set()
    failing.join(10)
    done = threading.Event()
    threads.start(done.set)
    assert done.wait(10)


def test_a_thread_that_cannot_start_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads(1, "requests are in flight")

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        for _ in range(3):
            with pytest.raises(EngineError, match="busy: it cannot start a thread: can't start"):
                threads.start(print)
    done = threading.Event()
    threads.start(done.set)
    assert done.wait(10)


def test_what_may_fail_does_without_harm() -> None:
    said: list[object] = []
    assert harmless(said.append, 1) and said == [1]
    assert not harmless(said.index, 2)
