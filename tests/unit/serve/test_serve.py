"""The server's surroundings that need no server: ports, messages, the client's tensors."""

import http.server
import re
import socket
import threading
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from specpipe.core.errors import ConfigError, StageFailed, Unavailable, Unsupported
from specpipe.serve.address import Address, free_address, require_free_ports
from specpipe.serve.client import Acceptance, Client, Options, Piece, collect
from specpipe.serve.refusals import absence, refusal
from specpipe.serve.tritonserver import start_server
from specpipe.serve.watch import is_ready


def test_a_port_in_use_is_named_with_its_flag() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        free = free_address()
        with pytest.raises(ConfigError, match=rf"port {port} on 127.0.0.1(.|\n)*--http-port"):
            require_free_ports(Address("127.0.0.1", free.grpc_port, port, free.metrics_port))


def test_the_three_ports_must_differ() -> None:
    with pytest.raises(ConfigError, match="must differ"):
        require_free_ports(Address("127.0.0.1", 8001, 8001, 8002))


def test_a_taken_port_stops_the_start_before_anything_is_launched(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = Address("127.0.0.1", taken.getsockname()[1], 1, 2)
        (tmp_path / "model").mkdir()
        (tmp_path / "model/config.pbtxt").touch()
        with (
            pytest.raises(ConfigError, match="port"),
            start_server(tmp_path, address, tmp_path / "log"),
        ):
            pass
    assert not (tmp_path / "log").exists()


def test_nothing_is_ready_where_nothing_listens() -> None:
    assert not is_ready(free_address())


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        ("StatusCode.INVALID_ARGUMENT", "max_tokens is 0", ConfigError),
        ("StatusCode.NOT_FOUND", "unknown model", ConfigError),
        (None, "unexpected inference input", ConfigError),
        ("StatusCode.UNIMPLEMENTED", "beam search", Unsupported),
        ("StatusCode.UNAVAILABLE", "the server is busy: 64 wait", Unavailable),
        ("StatusCode.UNAVAILABLE", "connection refused", Unavailable),
        ("StatusCode.UNKNOWN", "Stream removed", Unavailable),
        ("StatusCode.CANCELLED", "CANCELLED", Unavailable),
        ("StatusCode.INTERNAL", "internal error", StageFailed),
        (None, "INVALID_ARG: max_tokens is 0", ConfigError),
        (None, "UNSUPPORTED: beam_width is 4: beam search is not supported", Unsupported),
        (None, "UNAVAILABLE: the server is busy: 64 requests are waiting", Unavailable),
        (None, "UNAVAILABLE: the engine is not running", Unavailable),
        (None, "Request for unknown model: 'x' has no available versions", Unavailable),
        (None, "Request for unknown model: 'x' is not found", ConfigError),
        (None, "INTERNAL: internal error: KeyError", StageFailed),
    ],
)
def test_the_servers_errors_become_ours(status, message: str, kind: type[Exception]) -> None:
    error = refusal(InferenceServerException(message, status), "127.0.0.1:1")
    sentence = message.partition(": ")[2] if message[:2].isupper() else message
    assert type(error) is kind and sentence in str(error)
    assert not re.search(r"\b[A-Z]+_?[A-Z]+: ", str(error))


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote host: "
         "Connection refused", "no server at h:1 (connection refused)"),
        ("errors resolving h:1: address lookup failed for h:1: Domain name not found",
         "no server at h:1 (unknown host name)"),
        ("Failed parsing HTTP/2 (Expected SETTINGS frame)",
         "the server at h:1 does not speak gRPC\n  hint: the gRPC port is 8001 by default"),
        ("Socket closed", "the server at h:1 closed the connection"),
        ("something new", "no server at h:1: something new"),
    ],
)  # fmt: skip
def test_an_absent_server_has_a_short_cause(reason: str, message: str) -> None:
    assert str(absence(reason, "h:1")).startswith(message)


def test_a_port_of_http_is_named() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(Unavailable, match="does not speak gRPC|closed the connection"):
            Client(f"127.0.0.1:{server.server_port}").generate("hi", Options(max_tokens=1))
        server.shutdown()


def test_an_absent_server_is_a_sentence_with_a_hint() -> None:
    with pytest.raises(Unavailable, match=r"no server at (.|\n)*specpipe serve"):
        Client("127.0.0.1:1").generate("hi", Options(max_tokens=1))


def test_pieces_are_put_together() -> None:
    pieces = [
        Piece("Hel", (1, 2), False, Acceptance(3, 1), None, 0.5),
        Piece("lo", (3,), True, Acceptance(5, 2), 3, 0.75),
    ]
    answer = collect(iter(pieces))
    assert (answer.text, answer.tokens, answer.step_tokens) == ("Hello", (1, 2, 3), (2, 1))
    assert (answer.first_s, answer.total_s, answer.output_tokens) == (0.5, 0.75, 3)
    assert answer.acceptance.rate == 0.4
