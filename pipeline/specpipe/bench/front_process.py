"""`specpipe openai` as a process of its own, as users start it, and its CPU time."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from specpipe.core.errors import StageFailed
from specpipe.core.processes import die_with_parent, last_lines
from specpipe.serve.address import free_address

_EXIT_S = 10.0


@dataclass(frozen=True)
class FrontProcess:
    """A running front: the address of its API, and its process."""

    url: str
    pid: int

    def cpu_s(self) -> float:
        """Return the CPU time that the process has taken, in seconds."""
        return process_cpu_s(self.pid)


@contextmanager
def started_front(url: str, log: Path) -> Iterator[FrontProcess]:
    """Run the front before the server whose gRPC endpoint is `url` until the block ends.

    Its messages go to `log`. Raises StageFailed if it does not start.
    """
    port = free_address().http_port
    command = [sys.executable, "-m", "specpipe", "openai", "--url", url, "--port", str(port)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as messages:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=messages, preexec_fn=die_with_parent
        )
    try:
        yield FrontProcess(_listening(process, log), process.pid)
    finally:
        process.terminate()
        process.communicate(timeout=_EXIT_S)


def _listening(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Return the base URL once the front has printed it."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise StageFailed("the OpenAI front did not start: " + " ".join(last_lines(log)))
    return str(json.loads(line)["openai"])


def process_cpu_s(pid: int, processes: Path = Path("/proc")) -> float:
    """Return the seconds of CPU time of a process, of user and system; see proc_pid_stat(5)."""
    stat = (processes / str(pid) / "stat").read_text(encoding="utf-8")
    user, system = stat.rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
