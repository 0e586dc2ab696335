"""OpenAI fronts before servers of tests."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from specpipe.core.endpoint import Endpoint
from specpipe.openai.app import Front, FrontOptions
from specpipe.openai.server import FrontAddress, serve_front
from specpipe.repository.description import read_endpoint


@contextmanager
def fronting(
    url: str, find_endpoint: Callable[[], Endpoint], *, model: str = "tiny", **more: Any
) -> Iterator[FrontAddress]:
    """Serve the OpenAI API before a server; `more` are fields of `FrontOptions`."""
    address = FrontAddress(port=_free_port())
    with serve_front(Front(FrontOptions(url, model, **more), find_endpoint), address):
        yield address


@contextmanager
def fronting_repository(url: str, repository: Path, **more: Any) -> Iterator[FrontAddress]:
    """Serve the OpenAI API before the server of a repository, with its tokenizer."""
    endpoint = read_endpoint(repository)
    more = {"tokenizer": repository / endpoint.tokenizer, **more}
    with fronting(url, lambda: endpoint, **more) as address:
        yield address


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
