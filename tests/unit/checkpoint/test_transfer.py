"""Writing the tensors: in pieces, in any order, resumed after a kill, refused before the start."""

import hashlib
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from specpipe.checkpoint import stream
from specpipe.checkpoint.convert import Conversion
from specpipe.checkpoint.journal import Journal
from specpipe.checkpoint.safetensors_file import SafetensorsFile
from specpipe.checkpoint.source import open_source
from specpipe.checkpoint.writer import Announced, SafetensorsWriter
from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.core.divisibility import Parallel
from specpipe.run.run import Run
from specpipe.run.stages import build
from tests.helpers.modelopt import write_model
from tests.helpers.sharding import convert_tensors

SHAPES = {"a": Announced((4, 3), "bfloat16"), "b": Announced((5,), "float32")}


def values(name: str) -> torch.Tensor:
    torch.manual_seed(len(name) + ord(name[0]))
    return torch.randn(SHAPES[name].shape).to(getattr(torch, SHAPES[name].dtype))


def write_file(path: Path, order: str = "ab") -> dict[str, str]:
    with SafetensorsWriter(path, SHAPES) as writer:
        return {name: writer.write(name, values(name)) for name in order}


def test_the_order_of_writing_does_not_show_in_the_file(tmp_path: Path) -> None:
    assert write_file(tmp_path / "one", "ab") == write_file(tmp_path / "two", "ba")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    loaded = load_file(tmp_path / "one")
    assert all(torch.equal(loaded[name], values(name)) for name in SHAPES)


def test_digests_are_those_of_the_tensors_bytes(tmp_path: Path) -> None:
    digests = write_file(tmp_path / "file")
    for name in SHAPES:
        raw = values(name).view(-1).view(torch.uint8).numpy().tobytes()
        assert digests[name] == hashlib.sha256(raw).hexdigest()


def test_a_tensor_may_come_in_pieces_between_those_of_another(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "file", SHAPES) as writer:
        a, b = writer.begin("a"), writer.begin("b")
        a.write(values("a")[:1])
        b.write(values("b")[:4])
        a.write(values("a")[1:])
        b.write(values("b")[4:])
        digests = {"a": a.finish(), "b": b.finish()}
    assert digests == write_file(tmp_path / "whole")
    assert (tmp_path / "file").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(4, 3), "a is bfloat16, the piece torch.float32"),
        (torch.zeros(5, 3, dtype=torch.bfloat16), "longer"),
        (torch.zeros(3, 3, dtype=torch.bfloat16), "shorter"),
    ],
)
def test_what_was_not_announced_is_refused(
    tensor: torch.Tensor, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words), SafetensorsWriter(tmp_path / "f", SHAPES) as w:
        w.write("a", tensor)


def test_a_file_that_lacks_a_tensor_is_not_closed_quietly(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not written: b"):
        write_file(tmp_path / "file", "a")


def test_a_begun_file_keeps_only_the_tensors_whose_bytes_are_right(tmp_path: Path) -> None:
    digests = write_file(tmp_path / "file")
    content = bytearray((tmp_path / "file").read_bytes())
    content[-1] ^= 1  # in `a`: wide types come first
    (tmp_path / "file").write_bytes(content)
    with SafetensorsWriter(tmp_path / "file", SHAPES) as writer:
        assert writer.holds("b", digests["b"]) and not writer.holds("a", digests["a"])
        writer.write("a", values("a"))
    assert write_file(tmp_path / "again") == digests
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes()


def test_a_file_with_another_header_is_begun_anew(tmp_path: Path) -> None:
    digests = write_file(tmp_path / "file")
    turned = {"a": Announced((3, 4), "bfloat16"), "b": SHAPES["b"]}
    with pytest.raises(ValueError, match="not written"):
        with SafetensorsWriter(tmp_path / "file", turned) as writer:
            assert not writer.holds("b", digests["b"])


def test_a_damaged_journal_loses_only_the_damaged_lines(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.add("f", "a", "1")
        journal.add("f", "b", "2")
    text = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(b'\xff\x00\n[1]\n"x"\n' + text[:-6])  # garbage, and a torn end
    with Journal(tmp_path / "j") as journal:
        assert journal.digests == {("f", "a"): "1"}
        journal.add("f", "c", "3")
    with Journal(tmp_path / "j") as journal:
        assert journal.digests == {("f", "a"): "1", ("f", "c"): "3"}


def convert(source: Path, out: Path) -> dict[str, bytes]:
    out.mkdir(exist_ok=True)
    Conversion(open_source(source), "bfloat16").write(out, lambda done, total: None)
    return {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}


def test_blocks_of_any_size_give_the_same_files(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = convert(tiny, tmp_path / "large")
    monkeypatch.setattr(stream, "BLOCK_BYTES", 1000)
    assert convert(tiny, tmp_path / "small") == expected
    names = {"arithmetic.json", "config.json", "digests.json", "rank0.safetensors"}
    assert set(expected) == names


def test_no_read_is_larger_than_a_block_however_large_the_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stacked experts, embeddings and heads included: what bounds the memory of a conversion."""
    read: list[int] = []
    plain = SafetensorsFile.rows

    def rows(self: SafetensorsFile, name: str, begin: int, end: int) -> torch.Tensor:
        block = plain(self, name, begin, end)
        read.append(block.numel() * 4)
        return block

    source = write_model(tmp_path / "mixtral", "mixtral")
    monkeypatch.setattr(stream, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(SafetensorsFile, "rows", rows)
    monkeypatch.setattr(SafetensorsFile, "read", None)
    convert_tensors(open_source(source), tmp_path / "out", Parallel(2))
    assert max(read) <= 1000


def test_digests_json_names_every_tensor(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "out")
    digests = json.loads((tmp_path / "out/digests.json").read_text())["rank0.safetensors"]
    tensors = load_file(tmp_path / "out/rank0.safetensors")
    assert digests == {
        name: hashlib.sha256(tensor.view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in tensors.items()
    }


def killed_run(write_config, tmp_path: Path):
    """Return a run whose conversion was killed when half of the bytes were written."""
    config = read_config(write_config())
    run = (config, Workspace(tmp_path / "work", config.name))

    def die(done: int, total: int) -> None:
        if done > total / 2:
            os.kill(os.getpid(), signal.SIGKILL)

    def convert() -> None:
        torch.set_num_threads(1)  # renews torch's pool after the fork, before two threads try to
        build(Run(*run), ("convert",), progress=die)

    child = multiprocessing.get_context("fork").Process(target=convert)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    (begun,) = run[1].engines.glob("checkpoints/.target.*.part")
    return run, begun


def count_writes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    written: list[str] = []
    from specpipe.checkpoint import transfer

    def counting(reader, plan, *rest) -> None:
        written.append(plan.name)
        stream.write_parts(reader, plan, *rest)

    monkeypatch.setattr(transfer, "write_parts", counting)
    return written


def test_a_killed_conversion_goes_on_with_the_tensors_that_it_lacks(
    write_config, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, begun = killed_run(write_config, tmp_path)
    with Journal(begun / "finished.jsonl") as journal:
        there = {tensor for _, tensor in journal.digests}
    assert there and not (begun / "specpipe.json").exists()
    written = count_writes(monkeypatch)
    build(Run(*run), ("convert",))
    assert written and not there & set(written)
    out = run[1].checkpoint("target")
    expected = write_checkpoint_in_float32(tiny, tmp_path / "expected")
    assert (out / "rank0.safetensors").read_bytes() == expected
    assert not list(out.parent.glob(".*")) and not (out / "finished.jsonl").exists()


def write_checkpoint_in_float32(source: Path, out: Path) -> bytes:
    out.mkdir()
    Conversion(open_source(source), "float32").write(out, lambda done, total: None)
    return (out / "rank0.safetensors").read_bytes()


def test_bytes_that_were_lost_after_they_were_noted_are_written_again(
    write_config, tiny: Path, tmp_path: Path
) -> None:
    """After a power cut the journal may know more than the disk."""
    run, begun = killed_run(write_config, tmp_path)
    file = begun / "rank0.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as handle:
        handle.truncate(size // 4)
        handle.truncate(size)
    build(Run(*run), ("convert",))
    out = run[1].checkpoint("target") / "rank0.safetensors"
    assert out.read_bytes() == write_checkpoint_in_float32(tiny, tmp_path / "expected")


def test_begun_work_of_other_inputs_is_not_gone_on_with(
    write_config, tiny_draft: Path, tmp_path: Path
) -> None:
    run, begun = killed_run(write_config, tmp_path)
    other = read_config(write_config(target={"model": str(tiny_draft)}))
    build(Run(other, run[1]), ("convert",))
    assert not begun.exists()
    out = run[1].checkpoint("target") / "rank0.safetensors"
    assert out.read_bytes() == write_checkpoint_in_float32(tiny_draft, tmp_path / "expected")


def test_an_interrupted_conversion_keeps_its_work_and_a_failed_one_does_not(
    write_config, tmp_path: Path
) -> None:
    config = read_config(write_config())
    run = (config, Workspace(tmp_path / "work", config.name))

    def stop(error: type[BaseException]):
        def progress(done: int, total: int) -> None:
            raise error

        return progress

    with pytest.raises(KeyboardInterrupt):
        build(Run(*run), ("convert",), progress=stop(KeyboardInterrupt))
    assert list(run[1].engines.glob("checkpoints/.target.*.part"))
    with pytest.raises(RuntimeError):
        build(Run(*run), ("convert",), progress=stop(RuntimeError))
    assert list(run[1].engines.glob("checkpoints/*")) == []
    assert list(run[1].engines.glob("checkpoints/.*")) == []
