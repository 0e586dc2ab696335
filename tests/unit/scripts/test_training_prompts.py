"""The prompts that the shipped heads' training text answers."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "scripts/training-prompts"


def write(out: Path, *more: str) -> list[str]:
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--count", "400", *more]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return [json.loads(line)["prompt"] for line in out.read_text().splitlines()]


def test_they_are_the_same_every_time_and_all_different(tmp_path: Path) -> None:
    first, again = write(tmp_path / "a.jsonl"), write(tmp_path / "b.jsonl")
    assert first == again and len(set(first)) == 400
    assert write(tmp_path / "c.jsonl", "--seed", "1") != first
    assert not any(" at 0x" in prompt for prompt in first), "addresses differ from run to run"


def test_passages_lose_the_corpus_tags(tmp_path: Path) -> None:
    corpus = tmp_path / "brown"
    corpus.mkdir()
    words = " ".join(f"word{i}/nn" for i in range(40))
    lines = [f"\t{words} ,/, end{i}/nn ./.\n\n" for i in range(3000)]
    (corpus / "ca01").write_text("".join(lines))
    prompts = write(tmp_path / "a.jsonl", "--brown", str(corpus))
    wanted = " ".join(f"word{i}" for i in range(40)) + ", end"
    assert any(wanted in prompt for prompt in prompts) and not any("/nn" in p for p in prompts)
