"""What passes between the stages: folders with a manifest, keyed by content.

A folder with a manifest (`specpipe.json`) is whole: `publishing` writes it. The manifest names
every input by digest: if they still match, the artifact is up to date; if not, the difference is
the reason.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from specpipe.contracts import Role
from specpipe.errors import ConfigError, StageFailed
from specpipe.model import ModelConfig, model_from_json

MANIFEST = "specpipe.json"
_CHUNK = 1 << 22

Kind = Literal["checkpoint", "engine", "repository", "trained", "deployment"]


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
def locked(folder: Path, notify: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder's lock, so that two builds of one run do not meet.

    If another process holds it, say so through `notify` and wait; a dead process holds nothing.
    Raises StageFailed if the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as error:
        raise StageFailed(
            f"{folder} cannot be written: {error.strerror}",
            hint="give another --workspace, or make this one writable",
        ) from error
    with file as lock:
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
