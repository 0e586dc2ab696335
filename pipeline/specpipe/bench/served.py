"""A run that is built and served on this machine while it is measured."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from specpipe.core.artifacts import Workspace
from specpipe.repository.description import read_endpoint, token_counter
from specpipe.run.run import Run
from specpipe.run.stages import build, require_repository
from specpipe.serve.address import free_address
from specpipe.serve.client import Client, ClientTls, Generation, Options, unshared
from specpipe.serve.description import require_same_repository
from specpipe.serve.start import start_repository
from specpipe.serve.tritonserver import RunningServer
from specpipe.validate.stage import running_client

Notify = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Served:
    """A running server of a run, a client of it, and the seconds until all models were ready."""

    server: RunningServer
    client: Client
    start_s: float


@dataclass(frozen=True)
class Remote:
    """A server that runs already: its address, and what a client of it needs."""

    url: str  # HOST:PORT of gRPC, or http://HOST:PORT of an OpenAI API
    tls: ClientTls | None = None
    key: str | None = None


@contextmanager
def called(run: Run, remote: Remote | None, notify: Notify) -> Iterator[Client]:
    """Yield a client of the server at `remote`, or of a server of its own as `served` starts it.

    Raises ConfigError if the run is not built, or if the server reports another repository.
    """
    if remote is None:
        with served(run, notify) as running:
            yield running.client
        return
    require_repository(run)
    repository = run.workspace.repository
    require_same_repository(remote.url, repository, remote.tls)
    packaged = read_endpoint(repository)
    count = token_counter(repository, packaged)
    with running_client(remote.url, packaged, remote.tls, remote.key, count) as client:
        yield client


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
