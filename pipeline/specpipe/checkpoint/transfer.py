"""Transfers the tensors of a source to the files of all ranks: parallel, and resumable.

Every planned tensor is one task. Its bytes are digested on their way and its name is noted in a
journal when it is whole, so a killed conversion resumes with the missing tensors.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from specpipe.checkpoint.families import TensorPlan
from specpipe.checkpoint.journal import Journal
from specpipe.checkpoint.shard import Cut, cut, local_name, ranks
from specpipe.checkpoint.source import TensorReader
from specpipe.checkpoint.stream import write_parts
from specpipe.checkpoint.writer import Announced, SafetensorsWriter
from specpipe.core.divisibility import Parallel
from specpipe.core.errors import ConfigError, StageFailed
from specpipe.core.model import ModelConfig

DIGESTS, JOURNAL = "digests.json", "finished.jsonl"
WORKERS = min(4, os.cpu_count() or 1)  # one reads while another writes; more only share the disk
_READABLE = ("float32", "float16", "bfloat16", "float64")

Progress = Callable[[int, int], None]  # bytes done, bytes in all
Work = Sequence[tuple[TensorReader, TensorPlan]]
Digests = list[tuple[str, str, str]]  # file, tensor, sha256


@dataclass(frozen=True)
class TransferTask:
    """One planned tensor, and the part of it that goes into each file."""

    reader: TensorReader
    plan: TensorPlan
    dtype: str
    parts: Mapping[str, tuple[str, Cut]]  # file -> name in it, part

    def announced(self, file: str) -> Announced:
        """Return what is written to one of the files."""
        return Announced(self.parts[file][1].shape, self.dtype)

    @property
    def size(self) -> int:
        """Bytes in all files together."""
        return sum(self.announced(file).size for file in self.parts)


def write_tensors(
    work: Work, model: ModelConfig, parallel: Parallel, out: Path, progress: Progress
) -> None:
    """Write every planned tensor into the rank files of `out`, and digests.json when all are whole.

    Raises ConfigError if a source tensor has the wrong shape or type, StageFailed if the disk is
    too small; both before the first byte.
    """
    tasks = [_task(reader, plan, model, parallel) for reader, plan in work]
    for task in tasks:
        require_fit(task.reader, task.plan)
    files: dict[str, dict[str, Announced]] = {}
    for task in tasks:
        for file, (name, _) in task.parts.items():
            files.setdefault(file, {})[name] = task.announced(file)
    _require_space(out, files)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(out / JOURNAL))
        writers = {
            file: stack.enter_context(SafetensorsWriter(out / file, tensors))
            for file, tensors in files.items()
        }
        _perform(tasks, writers, journal, progress)
    _write_digests(out, files, journal)


def _task(
    reader: TensorReader, plan: TensorPlan, model: ModelConfig, parallel: Parallel
) -> TransferTask:
    parts = {}
    for rank in ranks(parallel):
        name = local_name(plan, rank, model)
        if name is not None:
            parts[rank.file] = (name, cut(plan, rank, model))
    return TransferTask(reader, plan, plan.dtype or model.dtype, parts)


def _perform(
    tasks: list[TransferTask],
    writers: Mapping[str, SafetensorsWriter],
    journal: Journal,
    progress: Progress,
) -> None:
    known = dict(journal.digests)
    total, done = sum(task.size for task in tasks), 0
    with ThreadPoolExecutor(WORKERS) as pool:
        running = {pool.submit(_write, task, writers, known): task for task in tasks}
        try:
            for future in as_completed(running):
                for digest in future.result():
                    journal.add(*digest)
                done += running[future].size
                progress(done, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write(
    task: TransferTask,
    writers: Mapping[str, SafetensorsWriter],
    known: Mapping[tuple[str, str], str],
) -> Digests:
    """Write one task's parts unless they are all there; return their digests if written."""
    names = {file: name for file, (name, _) in task.parts.items()}
    if all(
        (file, name) in known and writers[file].holds(name, known[file, name])
        for file, name in names.items()
    ):
        return []
    sinks = {file: writers[file].begin(name) for file, name in names.items()}
    parts = [(cut, sinks[file]) for file, (_, cut) in task.parts.items()]
    write_parts(task.reader, task.plan, task.dtype, parts)
    return [(file, names[file], sink.finish()) for file, sink in sinks.items()]


def _write_digests(out: Path, files: Mapping[str, Iterable[str]], journal: Journal) -> None:
    digests = {
        file: {tensor: journal.digests[file, tensor] for tensor in tensors}
        for file, tensors in files.items()
    }
    text = json.dumps(digests, indent=1, sort_keys=True) + "\n"
    (out / DIGESTS).write_text(text, encoding="utf-8")
    (out / JOURNAL).unlink()


def require_fit(reader: TensorReader, plan: TensorPlan) -> None:
    """Raise ConfigError if a source of a planned tensor has another shape or type."""
    for name, shape in zip(plan.sources, plan.source_shapes, strict=True):
        if reader.shape(name) != shape:
            raise ConfigError(
                f"{name} has shape {reader.shape(name)}, expected {shape}",
                hint="config.json belongs to another model",
            )
        if not (plan.join or plan.slices) and reader.dtype(name) not in _READABLE:
            raise ConfigError(
                f"{name} has dtype {reader.dtype(name)}; expected float32, float16 or bfloat16",
                hint="a quantised checkpoint must be dequantised first",
            )


def _require_space(out: Path, files: Mapping[str, Mapping[str, Announced]]) -> None:
    needed = sum(announced.size for tensors in files.values() for announced in tensors.values())
    needed -= sum(_allocated(out / file) for file in files)
    free = shutil.disk_usage(out).free
    if free < needed:
        raise StageFailed(
            f"convert: {out} needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free",
            hint="free some space or give another --workspace",
        )


def _allocated(file: Path) -> int:
    """Return the bytes that a file to be completed already takes on the disk."""
    return file.stat().st_blocks * 512 if file.is_file() else 0
