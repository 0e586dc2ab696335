"""The commit of the clone that runs, which figures are reported with."""

import subprocess
from pathlib import Path

_TIMEOUT_S = 10


def find_commit(folder: Path) -> str | None:
    """Return the commit of the clone that `folder` belongs to, `-dirty` if files differ from it.

    None if the files of the folder are not in a clone, as after an installation.
    """
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git(folder, "describe", "--always", "--dirty", "--exclude=*")


def _git(folder: Path, *words: str) -> str | None:
    command = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
