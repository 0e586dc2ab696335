"""Gives Triton paths that it can take, whatever repository and workspace are called."""

from pathlib import Path

from specpipe.core.paths import is_plain, require_plain


def plain_path(repository: Path, folder: Path) -> Path:
    """Return the repository's own path, or a link to it in `folder` if Triton cannot take that.

    Raises ConfigError if Triton cannot take `folder` either.
    """
    own = repository.resolve()
    if is_plain(own):
        return own
    require_plain(folder)
    link = folder / "served"
    link.symlink_to(own, target_is_directory=True)
    return link
