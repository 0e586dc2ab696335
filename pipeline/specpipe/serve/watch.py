"""Signs of life of a running tritonserver: its models' processes, and what they have in hand."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from specpipe.serve.address import Address
from specpipe.serve.connect import read_url

# Triton's own count lacks what a decoupled model still answers, ours what waits in Triton's queue.
_IN_HAND = ("specpipe_requests_in_flight{", "nv_inference_pending_request_count{")

PULSE_SECONDS = 15.0  # how often a server is asked whether it lives
SILENT_SECONDS = 60.0  # a server that has not answered for so long hangs


def children(pid: int) -> dict[int, str]:
    """Return the running child processes of a process: the model that each serves, or its name.

    Python models have a process for every instance; the server is as ready without it.
    """
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if _parent(folder) == pid:
            found[int(folder.name)] = _name(folder)
    return found


def first_ended(processes: Mapping[int, str]) -> str | None:
    """Return the name of one of these processes that does not run any more."""
    for pid, name in processes.items():
        if _parent(Path(f"/proc/{pid}")) is None:
            return name
    return None


def _parent(folder: Path) -> int | None:
    """Return the parent of a process; None if it has ended, be it waited for or not."""
    try:
        state, parent, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def _name(folder: Path) -> str:
    words: list[str] = []
    with contextlib.suppress(OSError):
        words = (folder / "cmdline").read_text(errors="replace").split("\0")
    models = [Path(word).parents[1].name for word in words if word.endswith("/1/model.py")]
    return models[0] if models else Path(words[0] if words else folder).name


def describe_end(code: int) -> str:
    """Say how a process ended, by its exit code; that of a signal is negative."""
    if code >= 0:
        return f"ended by itself with exit code {code}"
    return f"was ended by {signal.Signals(-code).name}"


def is_ready(address: Address) -> bool:
    """Ask the server whether every model is ready."""
    return _is_healthy(address, "ready", 1)


def is_live(address: Address) -> bool:
    """Ask a server whether it lives, whatever its models do."""
    return _is_healthy(address, "live", 5)


def _is_healthy(address: Address, what: str, timeout_s: float) -> bool:
    return read_url(f"http://{address.http}/v2/health/{what}", timeout_s) is not None


@dataclass
class Pulse:
    """Finds a server that runs but hangs, as one may after a crash in its own crash handler."""

    ask: Callable[[], bool]
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        """Begin with a server that has just said that it is ready."""
        self._asked = self._heard = self.now()

    def failure(self) -> str | None:
        """Ask if it is time to; say for how long the server has been silent if that is too long."""
        if self.now() - self._asked < PULSE_SECONDS:
            return None
        if self.ask():
            self._heard = self.now()
        self._asked = self.now()
        silent = self.now() - self._heard
        return (
            f"tritonserver has not answered for {silent:.0f} s"
            if silent >= SILENT_SECONDS
            else None
        )


def requests_in_hand(address: Address) -> int:
    """Return how many text requests a server answers or keeps waiting; 0 if it cannot be asked."""
    metrics = read_url(f"http://{address.metrics}/metrics", 5)
    return count_in_hand((metrics or b"").decode(errors="replace").splitlines())


def count_in_hand(lines: Iterable[str]) -> int:
    """Return the sum of what Prometheus' lines say is in hand."""
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith(_IN_HAND))
