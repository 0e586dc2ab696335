"""The address of a server, host and three ports, and how a client reaches it past proxies."""

import contextlib
import errno
import ipaddress
import socket
from dataclasses import dataclass

from specpipe.core.errors import ConfigError


@dataclass(frozen=True)
class Address:
    """Where the server listens."""

    host: str = "127.0.0.1"
    grpc_port: int = 8001
    http_port: int = 8000
    metrics_port: int = 8002

    @property
    def grpc(self) -> str:
        """The gRPC endpoint as host:port."""
        return f"{bracketed(self.host)}:{self.grpc_port}"

    @property
    def http(self) -> str:
        """The HTTP endpoint as host:port."""
        return f"{bracketed(self.host)}:{self.http_port}"

    @property
    def metrics(self) -> str:
        """The Prometheus endpoint as host:port."""
        return f"{bracketed(self.host)}:{self.metrics_port}"

    def flags(self) -> list[str]:
        """Return tritonserver's flags for this address."""
        ip = resolve(self.host)  # tritonserver takes names for gRPC only
        http = f"ipv6:{ip}" if ":" in ip else ip  # the spelling of libevhtp
        return [
            f"--http-address={http}",
            f"--grpc-address={bracketed(ip)}",
            f"--metrics-address={http}",
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
        ]


def bracketed(host: str) -> str:
    """Return a host as it stands before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def resolve(host: str) -> str:
    """Return the IP address of a host to listen on; raises ConfigError if there is none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(
            f"--host {host} is no address: {error.strerror}",
            hint="give an address of this machine, without brackets, e.g. 127.0.0.1 or ::1",
        ) from error
    return str(found[0][4][0])


def is_loopback(url: str) -> bool:
    """Tell whether HOST:PORT is on this machine, so that no proxy may stand between."""
    host = url.rpartition(":")[0].strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified  # who connects to 0.0.0.0 comes back here


def split_host_and_port(url: str) -> tuple[str, int] | None:
    """Return the parts of HOST:PORT or [IPV6]:PORT; None if it is neither."""
    host, _, port = url.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    ambiguous = ":" in bare and bare == host  # an IPv6 address without brackets
    if not bare or "/" in host or ambiguous or not port.isdecimal() or int(port) > 65535:
        return None
    return bare, int(port)


_REMEDIES = {
    errno.EADDRINUSE: "stop the other program or give another {}",
    errno.EADDRNOTAVAIL: "give --host an address of this machine, e.g. 127.0.0.1",
    errno.EACCES: "ports below 1024 need privileges; give another {}",
}


def require_free_ports(address: Address) -> None:
    """Raise ConfigError naming the first port that cannot be listened on."""
    ports = {
        "--grpc-port": address.grpc_port,
        "--http-port": address.http_port,
        "--metrics-port": address.metrics_port,
    }
    if address.metrics_port == address.http_port:  # a server with one port
        ports = {"--http-port": address.http_port}
    if len(set(ports.values())) < len(ports):
        raise ConfigError(f"the three ports must differ: {', '.join(map(str, ports.values()))}")
    ip = resolve(address.host)
    for flag, port in ports.items():
        with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ip, port))
            except OSError as error:
                raise ConfigError(
                    f"port {port} on {address.host} cannot be used: {error.strerror}",
                    hint=_REMEDIES.get(error.errno or 0, "give another {}").format(flag),
                ) from error


def free_address(host: str = "127.0.0.1") -> Address:
    """Return an address on a loopback host with three ports that are free now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(family)) for _ in range(3)]
        for sock in sockets:
            sock.bind((host, 0))
        ports = [sock.getsockname()[1] for sock in sockets]
    return Address(host, *ports)
