"""Publish folders atomically, and never replace files of the user.

An artifact is built in a temporary folder next to its destination. A *mark*, a file that only this
module writes, lies next to the temporary folder; a folder without a mark is never deleted. One
system call (`renameat2`) exchanges the finished folder with the old one, so either the old or the
new artifact exists at any time. Some network and FUSE file systems cannot exchange folders. There
the old folder is renamed first; if the process is killed between the two renames, the next build
first moves the old artifact back.
"""

import contextlib
import ctypes
import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from specpipe.core.artifacts import MANIFEST, Artifact, Manifest, read_artifact
from specpipe.core.errors import ConfigError, StageFailed, Unreadable, first_few

_MARK = ".mark"  # ends the name of the file that marks its neighbour as specpipe's
_MARK_TEXT = "specpipe: a folder that is being written or replaced; it may be deleted\n"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def why_kept(path: Path) -> str | None:
    """Return why nothing may replace `path`, for example foreign files; None if it may."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        return f"{path} is {'a symbolic link' if path.is_symlink() else 'a file'}, not a folder"
    if not path.exists() or not any(path.iterdir()):
        return None
    artifact = read_artifact(path)
    if artifact is None:
        return f"{path} is not empty and has no {MANIFEST} of specpipe"
    foreign = unlisted(artifact)
    if foreign:
        return f"{path} holds files that specpipe did not write: {first_few(foreign)}"
    return None


def unlisted(artifact: Artifact) -> list[str]:
    """Return the files in an artifact's folder that its manifest does not list.

    Python's caches next to the models of a server are ignored.
    """
    known = {MANIFEST, *artifact.manifest.files}
    files = (f for f in artifact.path.rglob("*") if f.is_symlink() or not f.is_dir())
    names = (f.relative_to(artifact.path) for f in files if not _is_cache(f))
    return sorted(str(name) for name in names if str(name) not in known)


def _is_cache(file: Path) -> bool:
    return file.parent.name == "__pycache__" and file.suffix == ".pyc"


def require_replaceable(paths: Sequence[Path]) -> None:
    """Raise ConfigError with all files at these paths that specpipe did not write."""
    kept = [reason for path in paths if (reason := why_kept(path))]
    if kept:
        raise ConfigError(
            "\n".join(
                ("nothing was changed, for it would be deleted:", *(f"  - {k}" for k in kept))
            )
            if len(kept) > 1
            else f"{kept[0]}; nothing was changed",
            hint="move it elsewhere; if it is what an interrupted build left, delete it",
        )


@contextlib.contextmanager
def staged(path: Path, stage: str, resume: str | None = None) -> Iterator[Path]:
    """Yield a marked sibling of `path`; remove it if the block raises.

    The folder is empty, unless `resume` is given, a key of the artifact and its inputs: then it has
    the files that a killed or interrupted process with the same key left. With `resume`, the folder
    is kept if the block is interrupted or if a file outside of it cannot be read. Raises
    ConfigError if specpipe did not write the folder at `path`. Raises StageFailed for every
    OSError, with the stage and the file.
    """
    require_replaceable([path])
    temporary = _make_sibling(path, stage, resume)
    keep = False
    try:
        yield temporary
    except OSError as error:
        unread = _outside(error, temporary)
        keep = resume is not None and unread is not None
        raise _disk_error(stage, path, error, unread) from error
    except BaseException as error:
        interrupted = not isinstance(error, Exception)
        keep = resume is not None and (interrupted or isinstance(error, Unreadable))
        raise
    finally:
        if not keep:
            _remove(temporary)  # after success it contains the replaced artifact


def _make_sibling(path: Path, stage: str, resume: str | None) -> Path:
    try:
        _make_folder(path.parent)
        if resume is None:
            return _marked(_free_name(path, "tmp"), exist_ok=False)
        begun = path.with_name(_begun_name(path, resume))
        if (begun / MANIFEST).exists():  # it was published; this folder has the replaced artifact
            _remove(begun)
        return _marked(begun, exist_ok=True)
    except OSError as error:
        raise _disk_error(stage, path, error, unread=None) from error


def _marked(folder: Path, *, exist_ok: bool) -> Path:
    """Write the mark of a folder, then make the folder."""
    mark = _mark(folder)
    if not (exist_ok and _has_mark(folder)):
        with mark.open("x", encoding="utf-8") as file:  # fails if a foreign file has this name
            file.write(_MARK_TEXT)
    folder.mkdir(exist_ok=exist_ok and _has_mark(folder))
    return folder


def _mark(folder: Path) -> Path:
    return folder.with_name(folder.name + _MARK)


def _has_mark(folder: Path) -> bool:
    try:
        return _mark(folder).read_text(encoding="utf-8") == _MARK_TEXT
    except (OSError, ValueError):
        return False


def _free_name(path: Path, kind: str) -> Path:
    """Return an unused name next to `path`, unique across containers."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.{kind}")


def _begun_name(path: Path, resume: str) -> str:
    return f".{path.name}.{resume[:32]}.part"


def _remove(folder: Path) -> None:
    """Delete a marked folder, then its mark; do nothing if it has no mark."""
    if _has_mark(folder):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            _mark(folder).unlink(missing_ok=True)


def write_publish(temporary: Path, path: Path, manifest: Manifest) -> Artifact:
    """Write the manifest into `temporary` and make it the artifact at `path`.

    An old artifact at `path` is moved to `temporary`. Raises ConfigError if specpipe did not write
    the folder at `path`.
    """
    files = {str(f.relative_to(temporary)): f.stat().st_size for f in _files(temporary)}
    whole = Manifest(manifest.kind, manifest.inputs, manifest.facts, files)
    for entry in temporary.rglob("*"):
        if not entry.is_symlink():
            _sync(entry)
    (temporary / MANIFEST).write_text(whole.to_json(), encoding="utf-8")
    _sync(temporary / MANIFEST)
    _sync(temporary)
    require_replaceable([path])
    _replace(temporary, path)
    _sync(path.parent)
    return Artifact(path, whole)


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file())


def _replace(temporary: Path, path: Path) -> None:
    """Move `temporary` to `path`, and an old folder at `path` to `temporary`."""
    if not path.exists() or not any(path.iterdir()):
        temporary.rename(path)  # rename replaces an empty folder
    elif not exchange(temporary, path):
        old = _free_name(path, "old")
        _mark(old).write_text(_MARK_TEXT, encoding="utf-8")
        path.rename(old)
        temporary.rename(path)
        _remove(old)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False if this machine or file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    places = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    if rename(*places, _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def remove_leftovers(path: Path, resume: str | None = None) -> None:
    """Delete the leftovers of dead builds of the artifact at `path`; the caller holds the lock.

    Only marked folders are deleted; the folder of a build with the key `resume` is kept. If a
    killed build had moved the old artifact away without replacing it, it is moved back.
    """
    put_back(path)
    for folder in _siblings(path):
        if not (resume and folder.name == _begun_name(path, resume)):
            _remove(folder)


def put_back(path: Path) -> None:
    """Undo the first of the two renames of a build that was killed between them."""
    for folder in _siblings(path):
        if folder.suffix == ".old" and folder.exists() and not path.exists():
            folder.rename(path)
            _remove(folder)


def _siblings(path: Path) -> list[Path]:
    """Return the marked folders of builds of the artifact at `path`."""
    marks = sorted(f for f in path.parent.glob(f".{glob.escape(path.name)}.*") if f.suffix == _MARK)
    folders = [mark.with_name(mark.name.removesuffix(_MARK)) for mark in marks]
    return [folder for folder in folders if _has_mark(folder)]


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, and flush each entry to the disk."""
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        _sync(made.parent)


def _sync(entry: Path) -> None:
    """Flush a file or the entries of a folder to the disk, if the file system supports it."""
    fd = os.open(entry, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # folders of some file systems
            raise
    finally:
        os.close(fd)


def _outside(error: OSError, temporary: Path) -> Path | None:
    """Return the file that an error names, unless it is in `temporary`."""
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return None
    file = Path(os.fsdecode(error.filename))
    ours = file.absolute().is_relative_to(temporary.absolute())
    return None if ours or error.errno in _FULL else file


def _disk_error(stage: str, path: Path, error: OSError, unread: Path | None) -> StageFailed:
    why = error.strerror or str(error)
    if unread is not None:
        return StageFailed(
            f"{stage}: {unread} cannot be used: {why}",
            hint="check that it is there, and its permissions, then run the same command again",
        )
    if error.errno in _FULL:
        free = shutil.disk_usage(_existing(path)).free / 2**30
        return StageFailed(
            f"{stage}: the disk is full while writing {path}; nothing was left behind",
            hint=f"free some space ({free:.1f} GiB are free) and run the same command again",
        )
    return StageFailed(f"{stage}: cannot write {error.filename or path}: {why}")


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())
