"""Runs the child programs of a stage: output in a log, heartbeats, the whole group ended."""

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_GRACE_S = 10.0
_POLL_S = 0.02


@dataclass(frozen=True)
class Program:
    """A program to start, and what ends it if killing our child does not (a container)."""

    argv: tuple[str, ...]
    abort: tuple[str, ...] = ()


def run_logged(
    launch: Program,
    log: Path,
    *,
    on_heartbeat: Callable[[float], None] = lambda seconds: None,
    heartbeat_s: float = 15.0,
) -> int:
    """Run a program with its output in `log`; return its exit code, negative for a signal.

    `on_heartbeat` hears every `heartbeat_s` seconds how long it has run. The program gets a process
    group of its own; if the wait ends by an exception, Ctrl-C included, the whole group is ended.
    Raises OSError if the program cannot be started or `log` cannot be written.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            launch.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(heartbeat_s)
                on_heartbeat(time.monotonic() - began)
        finally:
            _end_group(process, launch.abort)


def _end_group(process: "subprocess.Popen[bytes]", abort: Sequence[str]) -> None:
    """End a child that still runs, gently first, and whatever of its group outlived it."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        ended_within(process, _GRACE_S)
        if abort:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(abort, capture_output=True, timeout=60, check=False)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    ended_within(process)


def ended_within(process: "subprocess.Popen[Any]", seconds: float = math.inf) -> bool:
    """Wait for a child process for at most `seconds`; tell whether it has ended.

    For use after an exception that may have interrupted `Popen.wait`: the handler of a signal can
    raise it where Popen holds a lock, and then any further `Popen.wait` waits forever, and
    `poll` tells that the child still runs.
    """
    until = time.monotonic() + seconds
    while process.returncode is None:
        try:
            pid, status = os.waitpid(process.pid, os.WNOHANG)
        except ChildProcessError:  # its exit code was taken, and lost: Popen assumes 0 then
            pid, status = process.pid, 0
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
        elif time.monotonic() >= until:
            return False
        else:
            time.sleep(_POLL_S)
    return True


def die_with_parent() -> None:
    """Ask the kernel, in a new child, to end it if we are killed without a chance to."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def last_lines(log: Path, count: int = 8, limit: int = 65536) -> list[str]:
    """Return the last lines of a log that are not empty; nothing if it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - limit))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]
