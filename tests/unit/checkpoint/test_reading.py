"""A source is read once, and what its checkpoint is said to be made of is what was read."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from specpipe.checkpoint import safetensors_file
from specpipe.checkpoint.convert import Conversion, Converted
from specpipe.checkpoint.medusa import open_heads
from specpipe.checkpoint.reading import DigestedFile, digest_content
from specpipe.checkpoint.safetensors_file import SafetensorsFile
from specpipe.checkpoint.source import open_source
from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace, read_artifact
from specpipe.core.errors import ConfigError, StageFailed, Unreadable
from specpipe.run.run import Run
from specpipe.run.stages import build
from tests.helpers.models import make_heads, make_llama

Progress = Callable[[int, int], None]


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model in several files, each tensor of which goes to one place of the output."""
    folder = tmp_path_factory.mktemp("untied") / "model"
    return make_llama(
        folder, seed=3, save={"max_shard_size": "200KB"}, tie_word_embeddings=False
    )  # fmt: skip


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def convert(
    source: Path, out: Path, heads: Path | None = None, progress: Progress = lambda *at: None
) -> Converted:
    out.mkdir(exist_ok=True)
    found = open_heads(heads) if heads else None
    return Conversion(open_source(source), "float32", found).write(out, progress)


def run_of(config: Path, tmp_path: Path):
    found = read_config(config)
    return found, Workspace(tmp_path / "work", found.name)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """Return how often each byte range, by file and first byte, is read while a test runs."""
    reads: Counter[tuple[str, int]] = Counter()
    plain = os.preadv

    def counting(fd: int, views: list[memoryview], at: int) -> int:
        count = plain(fd, views, at)
        name = Path(f"/proc/self/fd/{fd}").readlink().name
        reads.update((name, byte) for byte in range(at, at + count))
        return count

    monkeypatch.setattr(safetensors_file.os, "preadv", counting)
    return reads


def bytes_read() -> int:
    """Return what this process has had from read(2) and its like since it began."""
    lines = Path("/proc/self/io").read_text().split("\n")
    return int(lines[0].removeprefix("rchar: "))


def test_every_byte_of_a_source_is_read_once(
    untied: Path, write_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(write_config(target={"model": str(untied)}), tmp_path)
    reads = count_reads(monkeypatch)
    build(Run(*run), ("convert",))
    files = sorted(untied.glob("*.safetensors"))
    assert len(files) > 2 and set(reads.values()) == {1}
    for file in files:
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        read = sorted(byte for name, byte in reads if name == file.name)
        assert read == list(range(header, file.stat().st_size))


def test_no_other_pass_over_the_source_hides(write_config, tmp_path: Path) -> None:
    """Counted by the kernel, over the whole stage."""
    sizes = {"hidden_size": 256, "intermediate_size": 2048, "tie_word_embeddings": False}
    source = make_llama(tmp_path / "source", seed=3, **sizes)
    size = (source / "model.safetensors").stat().st_size
    build(Run(*run_of(write_config(), tmp_path / "first")), ("convert",))  # imports, once
    run = run_of(write_config(target={"model": str(source)}), tmp_path)
    before = bytes_read()
    build(Run(*run), ("convert",))
    assert size <= bytes_read() - before < 1.1 * size


def test_what_was_read_is_what_a_pass_of_its_own_finds(
    tiny: Path, untied: Path, tmp_path: Path
) -> None:
    make_heads(tmp_path / "heads", seed=5)
    for number, (source, heads) in enumerate(
        [(tiny, None), (untied, None), (tiny, tmp_path / "heads")]
    ):
        digests = convert(source, tmp_path / str(number), heads).digests
        assert digests == {file: digest_content(file) for file in digests}
        weights = {f.name for f in [*source.iterdir(), *(heads.iterdir() if heads else [])]}
        assert {f.name for f in digests} <= weights


def test_tensors_that_no_output_needs_count_as_well(copy: Path, tmp_path: Path) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    digests = []
    for value in (1.0, 2.0):
        save_file({**tensors, name: torch.full((8,), value)}, file, {"format": "pt"})
        digests.append(convert(copy, tmp_path / str(value)).digests[file])
        assert digests[-1] == digest_content(file)
    assert digests[0] != digests[1]


@pytest.mark.parametrize("place", ["header", "first", "last"])
def test_every_byte_of_a_file_decides_its_digest(copy: Path, place: str) -> None:
    file = copy / "model.safetensors"
    before, content = digest_content(file), bytearray(file.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    at = {"header": content.index(b'"pt"') + 1, "first": header, "last": len(content) - 1}[place]
    content[at] ^= 1
    file.write_bytes(content)
    assert digest_content(file) != before


def test_readers_of_one_tensor_digest_it_together(tiny: Path) -> None:
    noted: dict[str, str] = {}
    file = DigestedFile(SafetensorsFile(tiny / "model.safetensors"), noted.__setitem__)
    name = "model.embed_tokens.weight"
    rows, _ = file.shape(name)
    file.rows(name, 0, 10)
    file.read(name)  # does not continue what was digested
    file.rows(name, 0, 20)  # nor does this
    file.rows(name, 10, 100)  # this does
    assert noted == {}
    file.rows(name, 100, rows)
    alone: dict[str, str] = {}
    other = DigestedFile(SafetensorsFile(tiny / "model.safetensors"), alone.__setitem__)
    other.read(name)
    assert noted == alone and list(noted) == [name]
    file.close(), other.close()


def flip(file: Path) -> None:
    """Change the last value in place, and put the modification time back."""
    before = file.stat()
    with file.open("r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        last = handle.read(1)
        handle.seek(-1, os.SEEK_END)
        handle.write(bytes([last[0] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def negate(file: Path) -> None:
    """Change every value, and nothing else that shows."""
    before = file.stat()
    tensors = {name: -tensor for name, tensor in load_file(file).items()}
    other = file.with_name("other")
    save_file(tensors, other, {"format": "pt"})
    file.write_bytes(other.read_bytes())  # keeps the inode
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.unlink()
    after = file.stat()
    assert (after.st_size, after.st_ino) == (before.st_size, before.st_ino)


def swap(file: Path) -> None:
    """Put another file of the same size and time in its place."""
    other = file.with_name("other")
    shutil.copy2(file, other)
    flip(other)
    other.replace(file)


def shorten(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("change", [flip, swap, shorten, Path.unlink])
def test_a_source_that_changes_during_its_conversion_is_refused(
    change: Callable[[Path], None], name: str, copy: Path, write_config, tmp_path: Path
) -> None:
    run = run_of(write_config(target={"model": str(copy)}), tmp_path)
    changed: list[int] = []

    def meddle(done: int, total: int) -> None:
        if not changed:
            changed.append(done)
            change(copy / name)

    with pytest.raises((StageFailed, ConfigError)) as refusal:
        build(Run(*run), ("convert",), progress=meddle)
    assert name in str(refusal.value) or "tokenizer" in str(refusal.value)
    left = [f.suffix for f in run[1].engines.glob("checkpoints/*")]
    kept = isinstance(refusal.value, Unreadable) or "cannot be used" in str(refusal.value)
    assert changed and sorted(left) == ([".mark", ".part"] if kept else [])
    assert kept == (change is Path.unlink)


def test_a_link_that_is_turned_for_a_moment_is_refused(
    copy: Path, tiny_draft: Path, tmp_path: Path
) -> None:
    """As in the hub's cache, where files are links: none is opened that was not stamped."""
    link = copy / "model.safetensors"
    link.rename(copy / "blob")
    link.symlink_to("blob")
    source = open_source(copy)
    link.unlink()
    link.symlink_to(tiny_draft / "model.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(StageFailed, match="changed while it was being converted"):
        Conversion(source, "float32").write(tmp_path / "out", lambda *at: None)


def interrupted(run, at: float) -> Path:
    """Break a conversion off when a share of the bytes is written; return what it left."""

    def stop(done: int, total: int) -> None:
        if done > at * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(Run(*run), ("convert",), progress=stop)
    (begun,) = run[1].engines.glob("checkpoints/.target.*.part")
    return begun


def test_work_begun_on_a_source_that_has_changed_since_is_not_gone_on_with(
    copy: Path, write_config, tmp_path: Path
) -> None:
    run = run_of(write_config(target={"model": str(copy)}), tmp_path)
    begun = interrupted(run, 0.9)
    negate(copy / "model.safetensors")
    build(Run(*run), ("convert",))
    assert not begun.exists()
    convert(copy, tmp_path / "expected")
    for name in ("rank0.safetensors", "digests.json"):
        ours, fresh = run[1].checkpoint("target") / name, tmp_path / "expected" / name
        assert ours.read_bytes() == fresh.read_bytes()
    inputs = read_artifact(run[1].checkpoint("target")).manifest.inputs
    assert inputs["source model.safetensors"] == digest_content(copy / "model.safetensors")


def test_a_resumed_conversion_has_the_digests_and_reads_nothing_twice(
    untied: Path, write_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(write_config(target={"model": str(untied)}), tmp_path)
    begun = interrupted(run, 0.7)
    lines = (begun / "read.jsonl").read_bytes().splitlines()
    noted = {tuple(json.loads(line)[:2]) for line in lines if line}
    finished = {json.loads(x)[1] for x in (begun / "finished.jsonl").read_bytes().splitlines() if x}
    assert noted and finished
    reads = count_reads(monkeypatch)
    build(Run(*run), ("convert",))
    total = sum(f.stat().st_size for f in untied.glob("*.safetensors"))
    assert set(reads.values()) == {1} and len(reads) < 0.7 * total
    assert not list(run[1].checkpoint("target").glob("*.jsonl"))
    inputs = read_artifact(run[1].checkpoint("target")).manifest.inputs
    for file in untied.glob("*.safetensors"):
        assert inputs[f"source {file.name}"] == digest_content(file)


def test_equal_content_elsewhere_is_fresh_and_other_content_of_equal_looks_is_not(
    copy: Path, tiny: Path, write_config, tmp_path: Path
) -> None:
    build(Run(*run_of(write_config(), tmp_path)), ("convert",))
    run = run_of(write_config(target={"model": str(copy)}), tmp_path)
    assert [result.fresh for result in build(Run(*run), ("convert",))] == [True]
    flip(copy / "model.safetensors")
    (result,) = build(Run(*run), ("convert",))
    assert not result.fresh and result.reason.startswith("source model.safetensors changed")
