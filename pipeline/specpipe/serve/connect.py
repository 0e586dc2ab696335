"""Opens connections to a server; those to this machine ignore proxies of the environment."""

import http.client
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tritonclient.grpc as grpc

from specpipe.serve.address import is_loopback

_CHUNK = 2**16  # bytes of one read
_UNBOUNDED = -1  # bytes of a message; the server has bounds of its own


@dataclass(frozen=True)
class ClientTls:
    """What an encrypted connection takes, PEM files."""

    ca: Path  # whose certificates a server may show
    certificate: Path | None = None  # what the client shows, and its private key
    key: Path | None = None

    def arguments(self) -> dict[str, object]:
        """Return tritonclient's arguments."""
        shown = (self.certificate, self.key)
        chain, key = (None if file is None else str(file) for file in shown)
        return {
            "ssl": True,
            "root_certificates": str(self.ca),
            "certificate_chain": chain,
            "private_key": key,
        }


def connect(url: str, tls: ClientTls | None = None, *, direct: bool = False) -> Any:
    """Return tritonclient's connection to HOST:PORT; nothing is sent yet.

    `direct` tells that the address is one of this machine, as loopback is.
    """
    encryption = tls.arguments() if tls else {}
    options = channel_options(url, direct=direct)
    if not options:
        return grpc.InferenceServerClient(url, **encryption)
    return grpc.InferenceServerClient(url, channel_args=options, **encryption)


def channel_options(url: str, *, direct: bool = False) -> list[tuple[str, int]]:
    """Return gRPC's options for HOST:PORT; none for other machines unless `direct`.

    gRPC takes `http_proxy` and `grpc_proxy` of the environment for loopback too, where no proxy
    can help. For other addresses it uses them as the user set them.
    """
    if not (direct or is_loopback(url)):
        return []
    return [
        ("grpc.max_send_message_length", _UNBOUNDED),
        ("grpc.max_receive_message_length", _UNBOUNDED),
        ("grpc.enable_http_proxy", 0),
    ]


def read_url(url: str, timeout_s: float) -> bytes | None:
    """Return what a server of this machine answers to a GET, past any proxy; None if not with 200.

    Raises nothing: an absent, silent or broken server answers None.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_s) as answer:
            return bytes(answer.read()) if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None


def read_text(url: str, timeout_s: float, most_bytes: int) -> str | None:
    """Return the text that a server answers to a GET.

    None if it is not `text/plain`, larger than `most_bytes`, or not complete after `timeout_s`.
    Raises nothing, like `read_url`. Proxies of the environment are for other machines only.
    """
    deadline = time.monotonic() + timeout_s
    local = is_loopback(urllib.parse.urlsplit(url).netloc)
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
    try:
        with opener.open(url, timeout=timeout_s) as answer:
            if answer.status != 200 or answer.headers.get_content_type() != "text/plain":
                return None
            raw = _bounded(answer, deadline, most_bytes)
    except (OSError, http.client.HTTPException):
        return None
    return None if raw is None else raw.decode(errors="replace")


def _bounded(answer: Any, deadline: float, most_bytes: int) -> bytes | None:
    """Read to the end, unless there is too much or it takes too long."""
    raw = bytearray()
    while chunk := answer.read1(_CHUNK):
        raw += chunk
        if len(raw) > most_bytes or time.monotonic() > deadline:
            return None
    return bytes(raw)
