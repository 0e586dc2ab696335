"""How a command ends from outside: Ctrl-C, a supervisor's signal, a closed pipe."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
SHELL_OFFSET = 128  # shells report the death by a signal as 128 and its number


class Terminated(KeyboardInterrupt):
    """A signal ended the command; it cleans up exactly as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Raise Terminated in the block at the first SIGTERM or SIGHUP; further ones are ignored.

    Otherwise these signals end Python at once, and servers, shared memory and temporary folders
    stay. A SIGHUP that `nohup` ignores stays ignored. A command may set its own handlers in the
    block. Does nothing outside the main thread, where Python does not allow signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    for later in SIGNALS:
        signal.signal(later, signal.SIG_IGN)  # the cleaning up is not interrupted
    raise Terminated(number)


def handle(stop: Callable[[], None]) -> None:
    """Call `stop` at Ctrl-C, and at each signal that `terminable` has set, instead of raising."""
    for number in (signal.SIGINT, *SIGNALS):
        if number is signal.SIGINT or signal.getsignal(number) is _terminate:
            signal.signal(number, lambda number, frame: stop())


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return the exit code that shells report: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    number = interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT
    return SHELL_OFFSET + number


def end_quietly() -> int:
    """Discard output that nobody reads, as with `| head`; return the shells' exit code for it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
            continue
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
            os.dup2(nowhere, stream.fileno())  # Python flushes it once more when it exits
        os.close(nowhere)
    return SHELL_OFFSET + signal.SIGPIPE
