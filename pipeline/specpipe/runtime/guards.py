"""Contain failures: of outside calls, of request threads, and of threads that must not fail."""

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec

from specpipe.runtime.failures import EngineError

log = logging.getLogger("specpipe")

P = ParamSpec("P")


@dataclass
class Threads:
    """Starts threads, at most `most` at a time; `what` completes the sentence of a refusal.

    If all are running, `start` waits `wait_s` seconds for one to end.
    """

    most: int
    what: str  # such as "requests are in flight"
    wait_s: float = 0.0

    def __post_init__(self) -> None:
        self._free = threading.BoundedSemaphore(self.most)

    def start(self, run: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call `run` in a thread; raises EngineError UNAVAILABLE if there can be no more."""

        def run_and_release() -> None:
            try:
                run(*args, **kwargs)
            finally:
                self._free.release()

        if not self._free.acquire(timeout=self.wait_s):
            raise _busy(f"{self.most} {self.what}, which is the limit")
        try:
            start_thread(run_and_release)
        except EngineError:
            self._free.release()
            raise


def start_thread(run: Callable[[], None]) -> None:
    """Call `run` in a thread; raises EngineError UNAVAILABLE if there can be no more."""
    try:
        threading.Thread(target=run, daemon=True).start()
    except RuntimeError as error:
        raise _busy(f"it cannot start a thread: {error}") from error


def _busy(why: str) -> EngineError:
    return EngineError("UNAVAILABLE", f"the server is busy: {why}")


def harmless(call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> bool:
    """Call a function that may fail; log its exception, and return whether there was none."""
    try:
        call(*args, **kwargs)
    except Exception as error:
        log.error("a call that should not fail failed", exc_info=error)
        return False
    return True


def start_vital_thread(run: Callable[[], None], name: str) -> threading.Thread:
    """Start a thread whose failure ends the process, with the traceback on stderr.

    Otherwise the process would accept requests and never answer them. A supervisor can restart a
    process that has ended.
    """

    def run_or_end() -> None:
        try:
            run()
        except BaseException:
            traceback.print_exc()
            sys.stderr.write(f"specpipe: the thread {name!r} failed; the process ends\n")
            sys.stderr.flush()
            os._exit(1)

    thread = threading.Thread(target=run_or_end, name=name, daemon=True)
    thread.start()
    return thread
