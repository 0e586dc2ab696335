"""The last step of an acceptance: tokens per second of a server by the number of clients."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from specpipe.acceptance.session import Outcome
from specpipe.core.endpoint import Endpoint
from specpipe.core.errors import SpecpipeError
from specpipe.repository.description import read_endpoint, token_counter
from specpipe.serve.client import Client, Generation, Options

CLIENTS = (1, 4, 16)
REQUESTS = 4  # of each client, one after the other
OPTIONS = Options(max_tokens=128)
PROMPT = "Write a Python class for a bounded queue with blocking put and get, and explain it."


@dataclass(frozen=True)
class LoadRow:
    """The figures of one number of clients."""

    clients: int
    requests: int
    median_request_s: float
    tokens_per_second: float  # of all clients together


def measure_load(url: str, repository: Path, out: Path) -> Outcome:
    """Load the server at `url` with 1, 4 and 16 clients; write the figures into the file `out`."""
    began = time.monotonic()
    try:
        endpoint = read_endpoint(repository)
        send = partial(_send_some, url, endpoint, token_counter(repository, endpoint))
        rows = [_measure(send, clients) for clients in CLIENTS]
    except SpecpipeError as error:
        return Outcome("bench", "failed", time.monotonic() - began, str(error).splitlines()[0])
    out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    note = ", ".join(f"{row.clients}: {row.tokens_per_second:.0f} tokens/s" for row in rows)
    return Outcome("bench", "ok", time.monotonic() - began, note)


def _measure(send: Callable[[int], Sequence[Generation]], clients: int) -> LoadRow:
    began, pool = time.monotonic(), ThreadPoolExecutor(clients)
    try:
        found = [answer for part in pool.map(send, range(clients)) for answer in part]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for the other clients
    seconds = time.monotonic() - began
    return LoadRow(
        clients,
        len(found),
        statistics.median(answer.total_s for answer in found),
        sum(answer.output_tokens or 0 for answer in found) / seconds,
    )


def _send_some(
    url: str, endpoint: Endpoint, count: Callable[[str], int] | None, number: int
) -> Sequence[Generation]:
    """Send the requests of one client; raises what the client raises."""
    chat = endpoint.chats
    with Client(url, endpoint, count=count) as client:
        return [client.generate(PROMPT, OPTIONS, chat=chat) for _ in range(REQUESTS)]
