"""Reads the state of a running tritonserver: processes of its models, and requests in flight."""

import contextlib
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path

from specpipe.serve.address import Address
from specpipe.serve.connect import read_url

# Triton's own count lacks what a decoupled model still answers, ours what waits in Triton's queue.
_IN_HAND = (
    "specpipe_requests_in_flight{",
    "nv_inference_pending_request_count{",
    "vllm:num_requests_running{",
    "vllm:num_requests_waiting{",
)


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
        state, parent, *_ = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def _name(folder: Path) -> str:
    words: list[str] = []
    with contextlib.suppress(OSError):
        words = (folder / "cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    models = [Path(word).parents[1].name for word in words if word.endswith("/1/model.py")]
    return models[0] if models else Path(words[0] if words else folder).name


def describe_end(code: int) -> str:
    """Describe how a process ended, by its exit code; that of a signal is negative."""
    if code >= 0:
        return f"ended by itself with exit code {code}"
    return f"was ended by {signal.Signals(-code).name}"


def is_ready(address: Address) -> bool:
    """Ask the server whether every model is ready."""
    return _is_healthy(address, "ready", 1)


def is_live(address: Address, timeout_s: float = 5) -> bool:
    """Ask a server whether it lives, whatever its models do."""
    return _is_healthy(address, "live", timeout_s)


def _is_healthy(address: Address, what: str, timeout_s: float) -> bool:
    return read_url(f"http://{address.http}/v2/health/{what}", timeout_s) is not None


def requests_in_hand(address: Address) -> int:
    """Return how many text requests a server answers or keeps waiting; 0 if it cannot be asked."""
    return count_in_hand(read_metrics(address) or ())


def read_metrics(address: Address) -> list[str] | None:
    """Return the lines of a server's metrics; None if it does not answer."""
    metrics = read_url(f"http://{address.metrics}/metrics", 5)
    return None if metrics is None else metrics.decode(errors="replace").splitlines()


def count_in_hand(lines: Iterable[str]) -> int:
    """Return the sum of the in-flight requests in Prometheus' lines."""
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith(_IN_HAND))
