"""The address of an OpenAI API, `http://HOST:PORT` or `https://HOST:PORT/PATH`, in its parts."""

import urllib.parse
from dataclasses import dataclass

from specpipe.core.errors import ConfigError
from specpipe.serve.address import bracketed

_PORTS = {"http": 80, "https": 443}
_DEFAULT_PATH = "/v1"


@dataclass(frozen=True)
class Base:
    """Where the routes of an API are: `path` is before `/models`."""

    scheme: str
    host: str
    port: int
    path: str = _DEFAULT_PATH

    @property
    def place(self) -> str:
        """The host and its port."""
        return f"{bracketed(self.host)}:{self.port}"


def is_http(url: str) -> bool:
    """Tell whether an address has a scheme, so that it is one of HTTP and not of gRPC."""
    return "://" in url


def parse_base(url: str, path: str = _DEFAULT_PATH) -> Base:
    """Return the parts of an address, whose path is `path` unless it has one.

    Raises ConfigError if it is none of HTTP.
    """
    problem = ""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _invalid(url, str(error)) from error
    if parts.scheme not in _PORTS:
        problem = f"the scheme is {parts.scheme!r}"
    elif not parts.hostname:
        problem = "it has no host"
    elif parts.query or parts.fragment or parts.username is not None:
        problem = "only a scheme, a host, a port and a path are taken"
    if problem:
        raise _invalid(url, problem)
    host = str(parts.hostname)
    found = parts.path.rstrip("/") or path
    return Base(parts.scheme, host, port or _PORTS[parts.scheme], found)


def _invalid(url: str, problem: str) -> ConfigError:
    return ConfigError(
        f"{url!r} is no address of an OpenAI API: {problem}", hint="e.g. http://127.0.0.1:8000"
    )
