"""A run that is built and served on this machine while it is measured."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from specpipe.core.artifacts import Workspace
from specpipe.repository.description import read_endpoint, token_counter
from specpipe.run.run import Run
from specpipe.run.stages import build
from specpipe.serve.address import free_address
from specpipe.serve.client import Client, Generation, Options, unshared
from specpipe.serve.start import start_repository
from specpipe.serve.tritonserver import RunningServer

Notify = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Served:
    """A running server of a run, a client of it, and the seconds until all models were ready."""

    server: RunningServer
    client: Client
    start_s: float


@contextmanager
def served(run: Run, notify: Notify) -> Iterator[Served]:
    """Build what is not up to date, and serve the run on free ports until the block ends.

    Raises what `build` and `start_repository` raise.
    """
    build(run, notify=notify)
    notify(f"{run.config.name}: starting the server")
    with started(run.workspace) as running:
        yield running


@contextmanager
def started(workspace: Workspace) -> Iterator[Served]:
    """Serve a run that is built until the block ends; raises what `start_repository` raises."""
    endpoint = read_endpoint(workspace.repository)
    count = token_counter(workspace.repository, endpoint)
    log = workspace.reports / "tritonserver-bench.log"
    began = time.perf_counter()
    with (
        start_repository(workspace.repository, free_address(), log) as server,
        Client(server.url, endpoint, count=count) as client,
    ):
        yield Served(server, client, time.perf_counter() - began)


def send(client: Client, prompt: str, options: Options) -> Generation:
    """Return the answer to a prompt in the chat template, if any; streamed where the model can.

    The prompt is read as a whole, also if it was sent before.
    """
    options = unshared(options, client.endpoint.text)
    chat = client.endpoint.chats
    if not client.endpoint.text.decoupled:
        return client.generate(prompt, options, chat=chat)
    return client.collect(client.stream(prompt, options, chat=chat))


def endless(client: Client, max_tokens: int) -> Options:
    """Return options for an answer of `max_tokens` tokens: no end token stops it, if possible."""
    can_be_set = "end_id" in client.endpoint.text.tensors.options
    return Options(max_tokens=max_tokens, end_id=-1 if can_be_set else None)
