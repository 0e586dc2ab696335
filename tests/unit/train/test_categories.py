"""The report has the measures of the hold-out for each category of its documents."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specpipe.core.artifacts import Workspace
from specpipe.train.accuracy import NEVER, judgement
from specpipe.train.categories import acceptance, members
from specpipe.train.corpus.account import Account
from specpipe.train.corpus.documents import read_documents
from specpipe.train.corpus.prompts import prompt_tokens, read_file_of_prompts
from specpipe.train.target import Target
from specpipe.train.text import Document
from tests.helpers.trainings import KINDS, documents, in_categories, judging


def test_documents_without_a_category_are_the_others() -> None:
    found = members(["b", "", "a", "b"])
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "a": [False, False, True, False],
        "b": [True, False, False, True],
        "others": [False, True, False, False],
    }
    assert members(["", ""]) == {} == members([])


def test_a_chain_is_right_up_to_its_first_wrong_token() -> None:
    ranks = [np.array([0, 0, 1, 0]), np.array([0, 2, 0, NEVER])]
    labelled = [rank != NEVER for rank in ranks]
    whole = judgement(ranks, labelled, ["x", "x", "y", "y"])
    assert whole.measures == pytest.approx(
        {
            "head 0 top-1": 3 / 4,
            "head 1 top-1": 2 / 3,
            "acceptance at depth 1": 3 / 4,
            "acceptance at depth 2": 1 / 3,
            "length": 1 + 3 / 4 + 1 / 3,
        }
    )
    assert whole.categories["y"]["head 1 top-1"] == 1, "of one label, the other is none"
    assert whole.categories["y"]["acceptance at depth 2"] == 0
    assert judgement(ranks, labelled, []).categories == {}


def test_no_position_is_no_division() -> None:
    assert acceptance(np.zeros(1, int), np.zeros(1, int))["length"] == 1


@pytest.mark.parametrize("kind", ["draft", "medusa2", "eagle3"])
def test_a_category_is_judged_as_its_documents_are(
    target: Target, tmp_path: Path, kind: str
) -> None:
    named = [replace(d, category="ab"[i % 2]) for i, d in enumerate(documents(60))]

    def judged(held_out: list[Document]) -> tuple[object, dict[str, object]]:
        found = judging(kind, target, tuple(held_out), tmp_path)()
        return found if isinstance(found, tuple) else (found.measures, found.categories)

    _, categories = judged(named)
    for name in "ab":
        whole, _ = judged([document for document in named if document.category == name])
        assert categories[name] == pytest.approx(whole, rel=1e-4)
    assert categories["a"] != pytest.approx(categories["b"], rel=1e-4)


def test_files_and_prompts_have_categories(target: Target, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    records = [{"prompt": "a", "category": "code"}, {"prompt": "b"}, {"prompt": "c", "category": 3}]
    file.write_text("\n".join(map(json.dumps, records)))
    named, *plain = read_file_of_prompts(file, Account("prompts"))
    assert named == {"messages": [{"role": "user", "content": "a"}], "category": "code"}
    assert plain == ["b", "c"]
    tokens = [prompt_tokens(prompt, target.tokenizer) for prompt in (named, "a")]
    assert tokens[0] == tokens[1]
    answered = [{**record, "answer": "said"} for record in records]
    file.write_text("\n".join(map(json.dumps, [*answered, {"text": "words", "category": "prose"}])))
    found = read_documents(file, target.tokenizer, 8, Account("documents"))
    assert [d.category for d in found] == ["code", "", "", "prose"]


@pytest.mark.parametrize(
    ("kind", "stage"), [*((kind, "medusa1") for kind in KINDS), ("medusa", "medusa2")]
)
def test_every_training_reports_them(
    kind: str, stage: str, make_run: Callable, workspace: Workspace, tmp_path: Path
) -> None:
    values = in_categories(tmp_path)
    values["medusa"] = {**values["medusa"], "stage": stage}
    folder = KINDS[kind](make_run(**values), workspace).path
    report = json.loads((folder / "report.json").read_text())
    assert list(report["categories"]) == ["code", "others", "prose"]
    assert "By category" in (folder / "report.html").read_text()
    for measure, whole in report["after"].items():
        parts = [values[measure] for values in report["categories"].values()]
        assert min(parts) - 1e-6 <= whole <= max(parts) + 1e-6
