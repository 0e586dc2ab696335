"""What passes between the stages: folders with a manifest, keyed by content, written atomically.

An artifact is built in a temporary sibling; its manifest (`specpipe.json`) is written last, then
the folder is renamed. So a folder with a manifest is whole, and what a crash leaves has none. The
manifest names every input by digest: if they still match, the artifact is fresh; if not, the
difference is the reason.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from specpipe.contracts import Role
from specpipe.errors import ConfigError, StageFailed
from specpipe.model import ModelConfig, model_from_json

MANIFEST = "specpipe.json"
_CHUNK = 1 << 22

Kind = Literal["checkpoint", "engine", "repository", "trained"]


@dataclass(frozen=True)
class Manifest:
    """What an artifact was made from and what is in it; equal inputs give equal bytes."""

    kind: Kind
    inputs: Mapping[str, str]  # name of the input -> digest or value
    facts: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)  # relative path -> bytes

    @property
    def key(self) -> str:
        """The content key: sha256 over the inputs."""
        return digest_json(dict(self.inputs))

    def to_json(self) -> str:
        """Return the manifest's text: sorted keys, no timestamps."""
        return json.dumps({"key": self.key, **asdict(self)}, indent=2, sort_keys=True) + "\n"


@dataclass(frozen=True)
class Artifact:
    """A whole artifact on disk."""

    path: Path
    manifest: Manifest


@dataclass(frozen=True)
class Workspace:
    """Where a run keeps its artifacts: fixed folders under one root."""

    root: Path
    name: str

    @property
    def engines(self) -> Path:
        """Folder of the run's engines and checkpoints."""
        return self.root / "engines" / self.name

    def checkpoint(self, role: Role) -> Path:
        """Folder of one converted model."""
        return self.engines / "checkpoints" / role

    def engine(self, role: Role) -> Path:
        """Folder of one compiled model."""
        return self.engines / role

    @property
    def repository(self) -> Path:
        """Folder of the Triton model repository."""
        return self.root / "triton_repo" / self.name

    @property
    def deployment(self) -> Path:
        """Folder of what serves the repository elsewhere."""
        return self.root / "deploy" / self.name

    @property
    def reports(self) -> Path:
        """Folder of the run's reports."""
        return self.root / "reports" / self.name


def digest_json(value: object) -> str:
    """Return the sha256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            sha.update(block)
    return sha.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_artifact(path: Path) -> Artifact | None:
    """Open the artifact at `path`; None if there is none or it is not whole."""
    try:
        raw = json.loads((path / MANIFEST).read_text())
        manifest = Manifest(raw["kind"], raw["inputs"], raw["facts"], raw["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Artifact(path, manifest)


def why_stale(path: Path, kind: Kind, inputs: Callable[[], Mapping[str, str]]) -> str | None:
    """Say why the artifact at `path` cannot be reused for `inputs`; None if it is fresh.

    The inputs, which may take long to digest, are asked for only if there is a whole artifact.
    """
    if not path.exists():
        return "not built yet"
    artifact = read_artifact(path)
    if artifact is None or artifact.manifest.kind != kind:
        return "no whole artifact there (an interrupted or foreign folder)"
    damage = next(describe_damage(artifact), None)
    return damage or describe_changes(artifact.manifest.inputs, inputs()) or None


def describe_damage(artifact: Artifact) -> Iterator[str]:
    """Say which files are not as large as the manifest says, or not there."""
    for name, size in artifact.manifest.files.items():
        file = artifact.path / name
        if not file.is_file():
            yield f"{name} is missing"
        elif file.stat().st_size != size:
            yield f"{name} has {file.stat().st_size} bytes, not {size}"


def describe_changes(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Say which inputs differ, and how; empty if none does. Of records, only the keys that do."""
    changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return "; ".join(_difference(name, old.get(name), new.get(name)) for name in changed)


def _difference(name: str, old: str | None, new: str | None) -> str:
    before, after = _keys(old), _keys(new)
    if before and after:
        return describe_changes(before, after)
    return f"{name}: {_short(old)} -> {_short(new)}"


def _keys(value: str | None) -> dict[str, str]:
    """Return the keys of a record that is an input, each value as JSON; empty if it is none."""
    try:
        record = json.loads(value or "")
    except ValueError:
        return {}
    return {k: json.dumps(v) for k, v in record.items()} if isinstance(record, dict) else {}


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return value[:12] if len(value) == 64 else value


@contextlib.contextmanager
def staged(path: Path, stage: str, resume: str | None = None) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; remove it if the block raises.

    It is empty, unless `resume` is given, a key of what is made and of what: then it is what a
    killed or interrupted process left that was making the same. Raises StageFailed, naming the
    stage, when the disk is full or cannot be written.
    """
    temporary = path.with_name(_staged_name(path, resume))
    try:
        temporary.mkdir(parents=True, exist_ok=resume is not None)
        yield temporary
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _disk_error(stage, path, error) from error
    except BaseException as error:
        interrupted = resume is not None and not isinstance(error, Exception)
        if not interrupted:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _staged_name(path: Path, resume: str | None) -> str:
    return f".{path.name}.{resume[:32]}.part" if resume else f".{path.name}.{os.getpid()}.tmp"


def write_publish(temporary: Path, path: Path, manifest: Manifest) -> Artifact:
    """Write the manifest into `temporary` and make it the artifact at `path`."""
    (temporary / MANIFEST).unlink(missing_ok=True)  # of a process that was killed behind this
    files = {str(f.relative_to(temporary)): f.stat().st_size for f in _files(temporary)}
    whole = Manifest(manifest.kind, manifest.inputs, manifest.facts, files)
    (temporary / MANIFEST).write_text(whole.to_json(), encoding="utf-8")
    for file in _files(temporary):
        _sync(file)
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    shutil.rmtree(old, ignore_errors=True)
    return Artifact(path, whole)


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file())


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def _disk_error(stage: str, path: Path, error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = shutil.disk_usage(_existing(path)).free / 2**30
        return StageFailed(
            f"{stage}: the disk is full while writing {path}; nothing was left behind",
            hint=f"free some space ({free:.1f} GiB are free) and run the same command again",
        )
    return StageFailed(f"{stage}: cannot write {path}: {error}")


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def remove_leftovers(path: Path, resume: str | None = None) -> None:
    """Delete what dead builds of the artifact at `path` left; the caller holds the lock.

    What can be gone on with stays: that is begun work with the key `resume`.
    """
    for leftover in path.parent.glob(f".{path.name}.*"):
        ours = resume is not None and leftover.name == _staged_name(path, resume)
        if leftover.suffix in (".tmp", ".old", ".part") and not ours:
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path, notify: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder's lock, so that two builds of one run do not meet.

    If another process holds it, say so through `notify` and wait; a dead process holds nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify(f"another specpipe is building in {folder}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_model_config(path: Path) -> ModelConfig:
    """Read the config.json of a TensorRT-LLM checkpoint (or of an engine built here).

    Raises ConfigError if the file is missing or lacks a key.
    """
    file = path / "config.json"
    try:
        return model_from_json(json.loads(file.read_text()))
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such file", hint="run `specpipe convert` first") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{file}: not a checkpoint config: {error}") from error
