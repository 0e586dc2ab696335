"""The prompts that the shipped heads' training text answers."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "scripts/training-prompts"


def write(out: Path, *more: str, count: str = "400") -> list[str]:
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--count", count, *more]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return [json.loads(line)["prompt"] for line in out.read_text().splitlines()]


def test_they_are_the_same_every_time_and_all_different(tmp_path: Path) -> None:
    first, again = (write(tmp_path / name, count="20000") for name in ("a.jsonl", "b.jsonl"))
    assert first == again and len(set(first)) == 20000
    assert write(tmp_path / "c.jsonl", "--seed", "1") != first[:400]
    assert not any(" at 0x" in prompt for prompt in first), "addresses differ from run to run"


def test_passages_and_nouns_lose_the_tags_of_the_corpus(tmp_path: Path) -> None:
    corpus = tmp_path / "brown"
    corpus.mkdir()
    words = " ".join(f"word{i}/nn" for i in range(40))
    lines = [f"\t{words} ,/, end{i}/nn ./.\n\n" for i in range(3000)]
    lines += ["\tThe/at lanterns/nns were/bed in/in the/at old/jj room/nn ./.\n\n"] * 8
    (corpus / "ca01").write_text("".join(lines))
    prompts = write(tmp_path / "a.jsonl", "--brown", str(corpus))
    for wanted in (" ".join(f"word{i}" for i in range(40)) + ", end", "about lanterns",
                   "The lanterns were in the old room."):  # fmt: skip
        assert any(wanted in prompt for prompt in prompts)
    assert not any("/nn" in prompt for prompt in prompts)


def test_categories_take_turns(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    counts = Counter(line["category"] for line in lines)
    assert set(counts) == {"chat", "code", "maths", "summary", "languages"}
    assert min(counts.values()) > 50


def test_a_folder_without_the_corpus_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "a"), "--brown", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2 and "has no file of the Brown corpus" in ended.stderr
