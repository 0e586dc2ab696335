"""Where a server listens: host and three ports."""

import contextlib
import socket
from dataclasses import dataclass

from specpipe.errors import ConfigError


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
        return f"{self.host}:{self.grpc_port}"

    @property
    def http(self) -> str:
        """The HTTP endpoint as host:port."""
        return f"{self.host}:{self.http_port}"

    @property
    def metrics(self) -> str:
        """The Prometheus endpoint as host:port."""
        return f"{self.host}:{self.metrics_port}"

    def flags(self) -> list[str]:
        """Return tritonserver's flags for this address."""
        return [
            *(f"--{kind}-address={self.host}" for kind in ("http", "grpc", "metrics")),
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
        ]


def require_free_ports(address: Address) -> None:
    """Raise ConfigError naming the first port that another program listens on."""
    ports = {
        "--grpc-port": address.grpc_port,
        "--http-port": address.http_port,
        "--metrics-port": address.metrics_port,
    }
    if len(set(ports.values())) < len(ports):
        raise ConfigError(f"the three ports must differ: {', '.join(map(str, ports.values()))}")
    for flag, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address.host, port))
            except OSError as error:
                raise ConfigError(
                    f"port {port} on {address.host} cannot be used: {error.strerror}",
                    hint=f"stop the other program or give another {flag}",
                ) from error


def free_address() -> Address:
    """Return a loopback address with three ports that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        ports = [sock.getsockname()[1] for sock in sockets]
    return Address("127.0.0.1", *ports)
