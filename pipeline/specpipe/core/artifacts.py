"""Artifacts, which one stage passes to the next: folders with a manifest, keyed by content.

A folder with a manifest (`specpipe.json`) is complete: `publishing` writes the manifest last. The
manifest names every input by digest. If the digests still match, the artifact is up to date. If
not, the difference is the reason to build it again.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from specpipe.core.contracts import Role
from specpipe.core.errors import ConfigError, StageFailed
from specpipe.core.model import ModelConfig, model_from_json

MANIFEST = "specpipe.json"
ARITHMETIC = "arithmetic.json"  # of a checkpoint: what config.json of TensorRT-LLM has no key for
_CHUNK = 1 << 22

ArtifactKind = Literal["checkpoint", "engine", "repository", "trained", "deployment"]
MISSING = "no earlier output"  # the reason to build an artifact that does not exist


@dataclass(frozen=True)
class Manifest:
    """The inputs and files of an artifact; equal inputs give equal bytes."""

    kind: ArtifactKind
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
    """A complete artifact on disk."""

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
        """Folder of the files that deploy the repository on another machine."""
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
    """Write a small file atomically; creates its folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_artifact(path: Path) -> Artifact | None:
    """Open the artifact at `path`; None if there is none or it is incomplete."""
    try:
        raw = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        manifest = Manifest(raw["kind"], raw["inputs"], raw["facts"], raw["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Artifact(path, manifest)


def why_stale(
    path: Path, kind: ArtifactKind, inputs: Callable[[], Mapping[str, str]]
) -> str | None:
    """Return why the artifact at `path` cannot be reused for `inputs`; None if it is up to date.

    `inputs`, which may take long to digest, is called only if there is a complete artifact.
    """
    if not path.exists():
        return MISSING
    artifact = read_artifact(path)
    if artifact is None or artifact.manifest.kind != kind:
        return "the folder is incomplete or was not created by specpipe"
    damage = next(describe_damage(artifact), None)
    return damage or describe_changes(artifact.manifest.inputs, inputs()) or None


def describe_damage(artifact: Artifact) -> Iterator[str]:
    """Yield the files that are missing or differ in size from the manifest."""
    for name, size in artifact.manifest.files.items():
        file = artifact.path / name
        if not file.is_file():
            yield f"{name} is missing"
        elif file.stat().st_size != size:
            yield f"{name} has {file.stat().st_size} bytes instead of {size}"


def describe_changes(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Return which inputs changed, and how; empty if none. Of a record, only the changed keys."""
    changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return "; ".join(_difference(name, old.get(name), new.get(name)) for name in changed)


def _difference(name: str, old: str | None, new: str | None) -> str:
    before, after = _keys(old), _keys(new)
    if before and after:
        return describe_changes(before, after)
    if old is None:
        return f"{name} is new ({_short(new)})"
    if new is None:
        return f"{name} was removed (it was {_short(old)})"
    return f"{name} changed from {_short(old)} to {_short(new)}"


def _keys(value: str | None) -> dict[str, str]:
    """Return the keys of a record, each value as JSON; empty if `value` is no record."""
    try:
        record = json.loads(value or "")
    except ValueError:
        return {}
    return {k: json.dumps(v) for k, v in record.items()} if isinstance(record, dict) else {}


def _short(value: str | None) -> str:
    text = value or ""
    return text[:12] if len(text) == 64 else text


@contextlib.contextmanager
def locked(folder: Path, notify: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder's lock, so that two builds of one run never work at the same time.

    If another process holds the lock, report it through `notify` and wait; the lock of a dead
    process is free. Raises StageFailed if the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
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
    """Read the facts of a TensorRT-LLM checkpoint (or of an engine built here).

    Raises ConfigError if config.json is missing or lacks a key.
    """
    file = path / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        return model_from_json(raw | read_arithmetic(path))
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such file", hint="run `specpipe convert` first") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{file}: not a checkpoint config: {error}") from error


def read_arithmetic(path: Path) -> dict[str, Any]:
    """Return the facts that a checkpoint has in a file of its own, next to config.json.

    TensorRT-LLM warns of a key in config.json that its classes do not have. Empty without the file,
    as in checkpoints of other converters.
    """
    file = path / ARITHMETIC
    return {"arithmetic": json.loads(file.read_text(encoding="utf-8"))} if file.is_file() else {}


def write_arithmetic(model: ModelConfig, path: Path) -> None:
    """Write the file that `read_arithmetic` reads."""
    text = json.dumps(asdict(model.arithmetic), indent=2, sort_keys=True) + "\n"
    (path / ARITHMETIC).write_text(text, encoding="utf-8")
