"""Whether `specpipe serve` can put the files of a server into this machine's temporary folder."""

from collections.abc import Iterator
from pathlib import Path

from specpipe.core.errors import ConfigError
from specpipe.core.paths import require_plain
from specpipe.runtime.rendezvous import SERVER_PREFIX, socket_path

_RANDOM = "x" * 8  # `tempfile` adds eight characters to a prefix


def temporary_notes(temporary: Path, *, on_cpu: bool) -> Iterator[str]:
    """Yield why a server with its files in `temporary` could not start.

    It is no refusal: the run may be built here and served elsewhere.
    """
    folder = temporary / f"{SERVER_PREFIX}{_RANDOM}"
    try:
        if on_cpu:
            require_plain(temporary)
        socket_path(folder)
    except ConfigError as error:
        yield f"`specpipe serve` will refuse this machine: {error.message}; {error.hint}"
