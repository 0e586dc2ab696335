"""Faults of serving are caught, each by the scenario that docs/validation.md names."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from specpipe.config.scenarios import SCENARIOS
from specpipe.validate.report import Report, write_report
from tests.helpers.served_model import ServedModel
from tests.helpers.serving_faults import CAUGHT
from tests.helpers.toy_reports import OPTIONS, report_on


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return a file from which transformers reads no tokenizer."""
    (tmp_path / "toy.gguf").touch()
    return tmp_path / "toy.gguf"


def failures(report: Report) -> set[str]:
    """Return the gates and checks that failed."""
    gates = {gate.name for gate in report.gates if not gate.passed}
    return gates | {check.name for check in report.checks if not check.passed}


def defects(report: Report, scenario: str) -> list[str]:
    """Return the defects of a scenario, as `arm against arm`."""
    (result,) = (r for r in report.results if r.scenario == scenario)
    found = result.equality.differences
    return sorted({f"{d.arm} against {d.against}" for d in found if d.kind == "defect"})


def test_a_server_without_faults_passes_every_scenario(weights: Path) -> None:
    report = report_on(ServedModel(), weights, *SCENARIOS)
    assert failures(report) == set() and report.passed
    assert [r.scenario for r in report.results] == list(SCENARIOS)
    assert {r.scenario: r.omitted for r in report.results if r.omitted} == {
        "tasks": "validate.tasks.names is empty"
    }
    page = write_report(report, weights.parent).read_text()
    assert page.count("<figure>") == 4 and "<script" not in page and "http" not in page
    assert "Answers, speculative against plain: " in page and "Scenario concurrency" in page
    lines = (weights.parent / "trials.jsonl").read_text().splitlines()
    assert {json.loads(line)["scenario"] for line in lines} == {
        "answers", "concurrency", "sampled", "long", "acceptance"
    }  # fmt: skip


@pytest.mark.parametrize("fault", CAUGHT, ids=lambda fault: fault.__name__)
def test_a_fault_of_serving_is_caught_by_its_scenario(
    fault: type[ServedModel], weights: Path
) -> None:
    scenario, words = CAUGHT[fault]
    gates = {"kl_mean": 0.01, "defects": 1000.0} if scenario == "accuracy" else {}
    options = replace(OPTIONS, gates=gates)
    report = report_on(fault(), weights, scenario, options=options)
    if " against " not in words:
        assert any(name.startswith(words) for name in failures(report)), failures(report)
    else:
        assert words in defects(report, scenario) and "defects" in failures(report)
