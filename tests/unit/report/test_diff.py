"""Two reports are compared figure by figure, and one is exported."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from specpipe.cli import main
from specpipe.core.errors import ConfigError
from specpipe.report.diff import compare_reports, read_report


def figure(value: float) -> dict[str, Any]:
    return {"median": value, "p10": value, "p90": value, "samples": 9, "interval": None}


def report(factor: float = 1.0, *, passed: bool = True, defects: int = 0) -> dict[str, Any]:
    """Return a report whose requests take `factor` times as long."""
    trials = [
        {"prompt": n, "arm": "speculative", "output_tokens": 11, "first_tokens": 1,
         "first_s": 0.1 * factor, "total_s": (0.1 + 0.1 * n) * factor}
        for n in range(1, 10)
    ]  # fmt: skip
    found = {"scenario": "answers", "arm": "speculative", "against": "plain", "kind": "defect"}
    metrics = {
        name: {"unit": "u", "larger_is_better": larger, "meaning": "It is.",
               "arms": {"speculative": figure(value)}}
        for name, larger, value in (
            ("tokens_per_second", True, 20 / factor), ("ttft_ms", False, 100 * factor),
            ("kl_mean", False, 0.1), ("speedup_over_plain", True, 1.2),
        )
    }  # fmt: skip
    return {
        "passed": passed, "conditions": {"run": "a", "machine": f"{factor}"}, "metrics": metrics,
        "speedups": {str(n): 1 + n / 10 for n in range(5)}, "trials": trials, "checks": [],
        "gates": [{"name": "defects", "passed": passed}],
        "scenarios": [{"scenario": "answers", "differences": [found] * defects}],
    }  # fmt: skip


def verdicts(factor: float) -> dict[str, str]:
    return {c.metric: c.verdict for c in compare_reports(report(), report(factor)).changes}


def test_a_clear_change_is_better_or_worse_by_the_direction_of_the_metric() -> None:
    slower = verdicts(3.0)
    assert slower["tokens_per_second"] == slower["ttft_ms"] == "worse"
    assert verdicts(0.3)["ttft_ms"] == "better"
    assert slower["kl_mean"] == "equal"


def test_a_change_within_its_interval_is_not_clear() -> None:
    assert verdicts(1.02)["tokens_per_second"] == "no clear change"


def test_conditions_verdicts_and_classes_that_changed_are_named() -> None:
    found = compare_reports(report(), report(2.0, passed=False, defects=3))
    assert found.conditions == {"machine": ("1.0", "2.0")}
    assert found.verdicts == {"defects": ("passed", "FAILED")}
    assert found.differences == {"answers, speculative against plain, defect": (0, 3)}


def test_a_figure_of_one_report_only_is_named_so() -> None:
    without = report()
    del without["metrics"]["kl_mean"]
    changes = compare_reports(without, report()).changes
    (found,) = [c for c in changes if c.metric == "kl_mean"]
    assert (found.before, found.verdict) == (None, "only in one report")


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    for name, factor in (("a", 1.0), ("b", 3.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report(factor)))
    words = ["report", "diff", str(tmp_path / "a"), str(tmp_path / "b/report.json")]
    text = CliRunner().invoke(main, words).stdout
    assert "| ttft_ms | speculative | 100 | 300 | +200 [+200, +200] | worse |" in text
    found = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert found["conditions"] == {"machine": ["1.0", "3.0"]}
    assert {c["metric"]: c["verdict"] for c in found["changes"]}["ttft_ms"] == "worse"


@pytest.mark.parametrize("text", ["nonsense", "[]", "{}"])
def test_what_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ConfigError, match="report"):
        read_report(tmp_path)


def test_a_section_for_a_model_card_has_figures_and_conditions(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report()))
    words = ["report", "export", str(tmp_path), "--format", "model-card"]
    card = Path(CliRunner().invoke(main, words).stdout.strip()).read_text()
    assert "| speedup_over_plain (u) | 1.2 | It is. |" in card and "- machine: 1.0" in card
