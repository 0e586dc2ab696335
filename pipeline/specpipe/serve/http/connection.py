"""Connections to an HTTP server that are used again; those to this machine ignore proxies."""

import http.client
import select
import ssl
import urllib.request
from collections import deque
from urllib.parse import urlsplit

from specpipe.core.errors import ConfigError
from specpipe.serve.address import is_loopback
from specpipe.serve.connect import ClientTls
from specpipe.serve.http.base import Base


class Connections:
    """The open connections to one server that no request uses; thread-safe."""

    def __init__(self, base: Base, tls: ClientTls | None, timeout_s: float) -> None:
        """Open nothing yet; raises ConfigError if `tls` does not fit the scheme."""
        self._base, self._timeout_s = base, timeout_s
        self._context = _context(base, tls)
        self._idle: deque[http.client.HTTPConnection] = deque()

    def take(self) -> http.client.HTTPConnection:
        """Return an idle connection that the server has not closed, or a new one."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._new()
            if _is_open(connection):
                return connection
            connection.close()

    def give_back(self, connection: http.client.HTTPConnection) -> None:
        """Keep a connection whose answer was read to its end."""
        self._idle.append(connection)

    def close(self) -> None:
        """Close the connections that no request uses."""
        while self._idle:
            self._idle.pop().close()

    def target(self, route: str) -> str:
        """Return what a request line names; a proxy for HTTP takes the whole address."""
        path = f"{self._base.path}{route}"
        if self._base.scheme == "http" and _proxy(self._base) is not None:
            return f"http://{self._base.place}{path}"
        return path

    def _new(self) -> http.client.HTTPConnection:
        base, proxy = self._base, _proxy(self._base)
        host, port = proxy or (base.host, base.port)
        if self._context is None:
            return http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        connection = http.client.HTTPSConnection(
            host, port, timeout=self._timeout_s, context=self._context
        )
        if proxy is not None:
            connection.set_tunnel(base.host, base.port)
        return connection


def _context(base: Base, tls: ClientTls | None) -> ssl.SSLContext | None:
    if base.scheme == "http":
        if tls is not None:
            raise ConfigError(
                f"http://{base.place} is not encrypted, and certificates were given",
                hint="give an address that begins with https://",
            )
        return None
    try:
        context = ssl.create_default_context(cafile=str(tls.ca) if tls else None)
        if tls is not None and tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the certificates cannot be used: {error}") from error
    return context


def _proxy(base: Base) -> tuple[str, int] | None:
    """Return the proxy of the environment for a server; None for servers of this machine."""
    if is_loopback(base.place) or urllib.request.proxy_bypass(base.host):
        return None
    url = urllib.request.getproxies().get(base.scheme)
    if not url:
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    return (parts.hostname, parts.port or 80) if parts.hostname else None


def _is_open(connection: http.client.HTTPConnection) -> bool:
    """Tell whether an idle connection can be used: a server that closed it makes it readable."""
    sock = connection.sock
    return sock is not None and not select.select([sock], [], [], 0)[0]
