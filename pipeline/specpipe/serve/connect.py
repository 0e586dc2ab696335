"""Connections to a server: straight to this machine, whatever proxies the environment names."""

import http.client
import urllib.request
from typing import Any

import tritonclient.grpc as grpc

from specpipe.serve.address import is_loopback

_UNBOUNDED = -1  # bytes of a message; the server has bounds of its own


def connect(url: str) -> Any:
    """Return tritonclient's connection to HOST:PORT; nothing is sent yet.

    gRPC takes `http_proxy` and `grpc_proxy` of the environment for loopback too, where no proxy
    can help. For other machines it uses them as the user set them.
    """
    if not is_loopback(url):
        return grpc.InferenceServerClient(url)
    options = [
        ("grpc.max_send_message_length", _UNBOUNDED),
        ("grpc.max_receive_message_length", _UNBOUNDED),
        ("grpc.enable_http_proxy", 0),
    ]
    return grpc.InferenceServerClient(url, channel_args=options)


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
