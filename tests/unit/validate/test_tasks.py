"""lm-evaluation-harness as a program: what it is asked, and what is read from its files."""

import json
import sys
from pathlib import Path

import pytest

from specpipe.config.validation import TaskOptions
from specpipe.core.errors import StageFailed, Unsupported
from specpipe.validate.harness import Evaluation, evaluate, interpreter
from specpipe.validate.scenarios.tasks import score

FAKE = """#!{python}
import json, pathlib, sys
words = sys.argv[1:]
if words[0] == "-c":
    sys.exit({known})
options = dict(zip(words[2::2], words[3::2]))
folder = pathlib.Path(words[words.index("--output_path") + 1]) / "model"
folder.mkdir(parents=True)
(folder / "seen.json").write_text(json.dumps([words, str(pathlib.Path.cwd())]))
rows = [{{"doc_id": i, "filter": "none", "acc": float(i != 1)}} for i in range(3)]
(folder / "samples_toy_mc_2026-01-01T00-00-00.jsonl").write_text("\\n".join(map(json.dumps, rows)))
results = {{"toy_mc": {{"acc,none": 0.67}}}}
(folder / "results_2026.json").write_text(json.dumps({{"results": results}}))
print("the log")
sys.exit({code})
"""


def write_python(folder: Path, *, known: int = 0, code: int = 0) -> str:
    """Write a program that stands for a Python with lm_eval, and for lm_eval itself."""
    file = folder / "python"
    file.write_text(FAKE.format(python=sys.executable, known=known, code=code))
    file.chmod(0o755)
    return str(file)


def test_the_harness_runs_in_its_own_python_from_the_folder_of_the_tasks(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    options = TaskOptions(
        ("toy_mc",), str(tmp_path / "tasks"), limit=3, python=write_python(tmp_path)
    )
    found = evaluate(options, "local-completions", {"model": "m", "base_url": "u"}, tmp_path / "o")
    words, place = json.loads((tmp_path / "o/model/seen.json").read_text())
    assert words[:4] == ["-m", "lm_eval", "--model", "local-completions"]
    assert words[words.index("--model_args") + 1] == "model=m,base_url=u"
    assert words[words.index("--limit") + 1] == "3" and "--num_fewshot" not in words
    assert place == str(tmp_path / "tasks") and "--log_samples" in words
    right = {(0, "none"): True, (1, "none"): False, (2, "none"): True}
    assert found.samples == {"toy_mc": right}
    assert found.figures == {"toy_mc": {"acc,none": 0.67}}


def test_a_python_without_the_harness_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"has no lm_eval, which the scenario `tasks` runs"):
        interpreter(TaskOptions(("toy",), python=write_python(tmp_path, known=1)))


def test_a_failure_shows_the_end_of_its_log(tmp_path: Path) -> None:
    options = TaskOptions(("toy",), python=write_python(tmp_path, code=3))
    with pytest.raises(StageFailed, match=r"(?s)lm_eval failed with 3; its log .*the log"):
        evaluate(options, "hf", {}, tmp_path / "o")


def test_flips_are_counted_document_by_document() -> None:
    """Accuracies are equal, and two of four documents have another verdict."""
    ours = {(0, "none"): True, (1, "none"): False, (2, "none"): True, (3, "none"): False}
    theirs = {(0, "none"): True, (1, "none"): True, (2, "none"): False, (3, "none"): False}
    (found,) = score(Evaluation({"toy": ours}, {}), Evaluation({"toy": theirs}, {}))
    assert (found.documents, found.right, found.reference_right) == (4, 2, 2)
    assert (found.lost, found.won, found.flips) == (1, 1, 0.5)
