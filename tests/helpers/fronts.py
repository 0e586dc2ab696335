"""OpenAI fronts before servers of tests."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from specpipe.openai.app import Front, FrontOptions
from specpipe.openai.server import FrontAddress, serve_front
from specpipe.repository.description import read_endpoint


@contextmanager
def fronting(url: str, repository: Path, **more: Any) -> Iterator[FrontAddress]:
    """Serve the OpenAI API before the server of a repository; the model's name is `tiny`.

    The front has the repository's tokenizer unless `more` names another, or None.
    """
    endpoint = read_endpoint(repository)
    more = {"tokenizer": repository / endpoint.tokenizer, **more}
    address = FrontAddress(port=_free_port())
    with serve_front(Front(FrontOptions(url, "tiny", **more), lambda: endpoint), address):
        yield address


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
