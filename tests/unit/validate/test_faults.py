"""Faults of serving are caught, each by the scenario that docs/validation.md names."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from specpipe.config.run_config import read_config
from specpipe.config.scenarios import SCENARIOS
from specpipe.config.validation import (
    ConcurrencyOptions,
    LongOptions,
    SampledOptions,
    ValidateOptions,
)
from specpipe.validate.questions import Question, Questions
from specpipe.validate.report import Report, write_report
from specpipe.validate.subject import Subject
from specpipe.validate.validate import validate
from tests.helpers.served_model import ServedModel, ToyReference, toy_tokenizer
from tests.helpers.serving_faults import CAUGHT

PROMPTS = (
    "What is the capital of France", "Tell a story of a cat", "why is the sky blue",
    "Name three colours", "the quick brown fox", "count to ten", "Say Hello", "one two three",
)  # fmt: skip
OPTIONS = ValidateOptions(
    num_prompts=8, max_tokens=48,
    concurrency=ConcurrencyOptions((1, 3), (), requests=8, max_tokens=16),
    sampled=SampledOptions(seeds=24, num_prompts=3, max_tokens=4),
    long=LongOptions((150,), max_tokens=160, num_prompts=4),
)  # fmt: skip
RUN = read_config(Path("model_configs/smollm2-135m_prompt-lookup.yaml"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return a file from which transformers reads no tokenizer."""
    (tmp_path / "toy.gguf").touch()
    return tmp_path / "toy.gguf"


def report_on(
    model: ServedModel, weights: Path, *scenarios: str, options: ValidateOptions = OPTIONS
) -> Report:
    """Validate a served model with some scenarios and the default gates."""
    tokenizer = toy_tokenizer()
    asked = tuple(Question(text, tuple(tokenizer.encode(text, 99))) for text in PROMPTS)
    config = replace(RUN, validate=replace(options, scenarios=scenarios))
    subject = Subject(
        config, model.endpoint, weights, Questions(asked, tokenizer), {}, None, scenarios
    )
    return validate(
        subject, lambda: nullcontext(model), open_reference=ToyReference  # type: ignore[arg-type]
    )  # fmt: skip


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
