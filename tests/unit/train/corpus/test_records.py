"""Files as people have them: lists, lines, tables, packed, and in folders."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from specpipe.config.training import Dataset
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.train.corpus.files import files_of, read_text
from specpipe.train.corpus.records import dataset_records, read_records

CHAT = {"messages": [{"role": "user", "content": "a\u2028b"}]}
LINE = json.dumps(CHAT, ensure_ascii=False)


def values(file: Path) -> list[Any]:
    records = read_records(file)
    assert not isinstance(records, str), "read as plain text"
    return [record.value for record in records]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", f"{LINE}\n\n{LINE}\n"),
        ("a.NDJSON", f"{LINE}\r\n{LINE}"),
        ("a.Json", f"[{LINE}, {LINE}]"),
        ("a.json", json.dumps([CHAT, CHAT], indent=2)),
        ("a.json", json.dumps({"rows": [CHAT, CHAT]})),
        ("a.txt", f"{LINE}\n{LINE}\n"),
        ("bom.jsonl", f"\ufeff{LINE}\n{LINE}\n"),
        ("no_suffix", f" [{LINE}, {LINE}]"),
    ],
)
def test_json_is_read_as_records_whatever_the_file_is_called(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert values(tmp_path / name) == [CHAT, CHAT]


def test_one_chat_is_one_record(tmp_path: Path) -> None:
    for value in (CHAT, CHAT["messages"]):
        (tmp_path / "a.json").write_text(json.dumps(value))
        assert values(tmp_path / "a.json") == [value]


def test_a_packed_file_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINE.encode()))
    assert values(tmp_path / "a.jsonl.gz") == [CHAT]
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"The ferry leaves at six.")[:-9])
    with pytest.raises(ConfigError, match=r"cut\.txt\.gz: cannot be read"):
        read_records(tmp_path / "cut.txt.gz")


@pytest.mark.parametrize("text", ["The ferry.\n", "[sic] the ferry {leaves}", "{no} JSON\n{}"])
def test_prose_is_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert read_records(tmp_path / "a.txt") == text


def test_utf_16_with_its_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Grüße".encode("utf-16"))
    assert read_text(tmp_path / "a.txt") == "Grüße"
    (tmp_path / "b.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"b\.txt: not UTF-8 text"):
        read_text(tmp_path / "b.txt")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_damaged_line_is_named_and_never_learned_as_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(f'{LINE}\n{LINE}\n{{"messages": [\n')
    with pytest.raises(ConfigError, match=rf"{name}:3: not JSON"):
        read_records(tmp_path / name)


def test_a_folder_is_its_visible_files_of_known_suffixes(tmp_path: Path) -> None:
    for name in ("b/c.md", "a.JSONL", ".git/x.txt", "image.png", "d.json.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = [str(f.relative_to(tmp_path)) for f in files_of(tmp_path)]
    assert found == ["a.JSONL", "b/c.md", "d.json.gz"]
    with pytest.raises(ConfigError, match="no text in this folder"):
        files_of(_empty(tmp_path))


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def test_rows_of_a_parquet_file_have_no_keys_that_are_null(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    row = {"messages": [{"role": "user", "content": "a", "tool_calls": None}], "text": None}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == [{"messages": [{"role": "user", "content": "a"}]}]
    (tmp_path / "b.parquet").write_text("no table")
    with pytest.raises(ConfigError, match=r"b\.parquet: not a parquet file"):
        read_records(tmp_path / "b.parquet")


def test_a_dataset_is_read_up_to_the_rows_that_are_wanted() -> None:
    asked: list[Any] = []

    def load(*names: Any, **options: Any) -> list[Any]:
        asked.append((names, options))
        return [{"text": str(i), "id": None} for i in range(9)]

    found = dataset_records(Dataset("someone/chats", "en", "train[:9]", "v1", rows=2), load)
    assert asked == [(("someone/chats", "en"), {"split": "train[:9]", "revision": "v1"})]
    assert [record.value for record in found] == [{"text": "0"}, {"text": "1"}]
    assert found[1].place == "dataset someone/chats/en, train[:9][1]"


def test_a_dataset_that_cannot_be_loaded_is_named() -> None:
    def load(*names: Any, **options: Any) -> list[Any]:
        raise FileNotFoundError("no such dataset")

    with pytest.raises(ConfigError, match="dataset a/b, train: cannot be loaded: no such dataset"):
        dataset_records(Dataset("a/b"), load)


@pytest.mark.slow
def test_the_library_of_the_hub_reads_a_folder_as_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "chats").mkdir()
    (tmp_path / "chats/train.jsonl").write_text(f"{LINE}\n" * 5)
    found = dataset_records(Dataset(str(tmp_path / "chats"), split="train[:3]"))
    assert [record.value for record in found] == [CHAT] * 3


def test_without_the_library_a_dataset_is_refused_with_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Unsupported, match=r"need the package `datasets`\n.*'\.\[train\]'"):
        dataset_records(Dataset("a/b"))
