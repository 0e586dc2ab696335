"""The folders that `build` writes, and what it must not replace there."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from specpipe.core.artifacts import Workspace, read_artifact
from specpipe.core.contracts import Role
from specpipe.core.errors import Rejection
from specpipe.core.publishing import why_kept
from specpipe.engine.backend import BuildRequest


def written_places(built: Mapping[Role, BuildRequest], workspace: Workspace) -> Iterator[Path]:
    """Yield the folders that `build` writes."""
    for role, request in built.items():
        if not request.engine.traits.serves_sources:
            yield workspace.checkpoint(role)
        yield workspace.engine(role)
    yield workspace.repository


def occupied(places: Sequence[Path]) -> Iterator[Rejection]:
    """Refuse places that hold files which specpipe did not write."""
    for reason in kept(places, owned=False):
        yield Rejection(reason, "move it elsewhere; if an interrupted build left it, delete it")


def kept(places: Sequence[Path], *, owned: bool) -> Iterator[str]:
    """Yield what build must not replace: foreign files in specpipe's folders, or other folders."""
    for path in places:
        if (read_artifact(path) is not None) == owned and (reason := why_kept(path)):
            yield reason
