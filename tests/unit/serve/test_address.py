"""Addresses, IPv6 among them, and connections that no proxy may take."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from specpipe.core.errors import ConfigError, Unavailable
from specpipe.serve.address import (
    Address,
    free_address,
    is_loopback,
    require_free_ports,
    split_host_and_port,
)
from specpipe.serve.client import Client, Options
from specpipe.serve.probe import answers_stream
from specpipe.serve.watch import is_live, requests_in_hand


def test_an_ipv6_address_stands_in_brackets_and_as_tritonserver_spells_it() -> None:
    address = Address("::1", 8001, 8000, 8002)
    assert (address.grpc, address.http) == ("[::1]:8001", "[::1]:8000")
    assert address.flags()[:3] == [
        "--http-address=ipv6:::1",
        "--grpc-address=[::1]",
        "--metrics-address=ipv6:::1",
    ]


def test_a_name_is_resolved_for_tritonserver() -> None:
    address = Address("localhost")
    assert address.flags()[1] in ("--grpc-address=127.0.0.1", "--grpc-address=[::1]")
    with pytest.raises(ConfigError, match=r"--host \[::1\] is no address(.|\n)*without brackets"):
        Address("[::1]").flags()


def test_a_taken_port_of_ipv6_is_named() -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        free = free_address("::1")
        with pytest.raises(ConfigError, match=rf"port {port} on ::1(.|\n)*--grpc-port"):
            require_free_ports(Address("::1", port, free.http_port, free.metrics_port))
    require_free_ports(free)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("127.0.0.1:8001", ("127.0.0.1", 8001)),
        ("[::1]:8001", ("::1", 8001)),
        ("host.example:1", ("host.example", 1)),
        ("::1:8001", None),
        ("[]:8001", None),
        ("host:99999", None),
        ("http://host:1", None),
    ],
)
def test_urls_are_host_and_port(url: str, parts: tuple[str, int] | None) -> None:
    assert split_host_and_port(url) == parts


def test_this_machine_is_known_by_its_names() -> None:
    assert all(map(is_loopback, ("127.0.0.1:1", "127.8.9.1:1", "[::1]:1", "localhost:1")))
    assert all(map(is_loopback, ("0.0.0.0:1", "[::]:1")))
    assert not any(map(is_loopback, ("10.0.0.1:1", "example.org:1", "[fe80::1]:1")))


class Health(BaseHTTPRequestHandler):
    """Answers like a live server with three in-flight requests."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'specpipe_requests_in_flight{model="x"} 3\n')

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(params=["127.0.0.1", "::1"])
def healthy(request: pytest.FixtureRequest) -> Iterator[Address]:
    """Return the address of a server that answers health and metrics, by IPv4 and IPv6."""

    class Server(HTTPServer):
        address_family = socket.AF_INET6 if ":" in request.param else socket.AF_INET

    with Server((request.param, 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port
        yield Address(request.param, http_port=port, metrics_port=port)
        server.shutdown()


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Name a proxy in the environment; return its socket, to which nobody may connect."""
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "grpc_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        yield proxy


def untouched(proxy: socket.socket) -> bool:
    proxy.setblocking(False)
    try:
        proxy.accept()
    except BlockingIOError:
        return True
    return False


def test_health_and_metrics_are_read_past_a_proxy(healthy: Address, proxied: socket.socket) -> None:
    assert is_live(healthy) and requests_in_hand(healthy) == 3
    assert untouched(proxied)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_grpc_reaches_this_machine_past_a_proxy(host: str, proxied: socket.socket) -> None:
    with pytest.raises(Unavailable, match="no server at"):
        Client(f"{host}:1", timeout_s=10).generate("hi", Options(max_tokens=1))
    assert untouched(proxied)


def test_serve_reaches_its_own_server_past_a_proxy_whatever_its_address(
    proxied: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specpipe.serve.connect.is_loopback", lambda url: False)
    assert not answers_stream("127.0.0.1:1", 5)
    assert untouched(proxied)
