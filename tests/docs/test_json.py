"""docs/json.md: every field that a command prints has a row, and the examples have these fields."""

import ast
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from specpipe.acceptance.session import ConfigResult, Outcome
from specpipe.bench.costs import MeasuredCosts
from specpipe.bench.engine import EngineRow, PrefillRate, StepTime
from specpipe.bench.front import FrontRow
from specpipe.bench.serving import ServingRow
from specpipe.bench.soak import OutcomeCount, ProcessUsage, SoakRow
from specpipe.bench.speculation import SpeculationRow
from specpipe.bench.tuning import TuningRow
from specpipe.checkpoint.inspection.records import Inspection
from specpipe.cli import main
from specpipe.cli.acceptance import acceptance_json
from specpipe.cli.bench_tables import bench_json
from specpipe.cli.output import print_error
from specpipe.cli.present import generation_json
from specpipe.cli.present_tuning import method_json, tuning_json
from specpipe.cli.report import diff_json, export_json
from specpipe.cli.serve import print_ready
from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.doctor.checks import Finding
from specpipe.plan.make_plan import make_plan
from specpipe.report.plan_json import plan_json
from specpipe.run.stages import StageResult
from specpipe.train.produce import TrainResult
from specpipe.train.report import TrainingReport
from specpipe.validate.report import result_json, to_json

PAGE = Path("docs/json.md")
SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
SECTIONS = dict(SECTION.findall(PAGE.read_text(encoding="utf-8")))


def literal_keys(function: Callable[..., Any]) -> set[str]:
    """Return the keys of the first object that a function's source writes out."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found = next(node for node in ast.walk(tree) if isinstance(node, ast.Dict) and node.keys)
    return {key.value for key in found.keys if isinstance(key, ast.Constant)}


def fields(record: type) -> set[str]:
    return {field.name for field in dataclasses.fields(record)}


NOT_FIELDS = {"speculation", "scenarios", "validate"}  # their shape is described elsewhere
BENCH = "bench speculation, bench serving, bench front, bench engine, bench tuning, bench soak"
PRINTED = {
    "Errors": literal_keys(print_error),
    "build, convert, compile, package, status": fields(StageResult),
    "plan": literal_keys(plan_json),
    "doctor": fields(Finding),
    "inspect": fields(Inspection),
    "serve": literal_keys(print_ready),
    "generate, chat": literal_keys(generation_json),
    "validate": literal_keys(to_json),
    "report diff": literal_keys(diff_json),
    "report export": literal_keys(export_json),
    "tune": literal_keys(tuning_json),
    "recommend": literal_keys(method_json),
    "train medusa, train redrafter, train eagle3, train draft": fields(TrainResult) | {"report"},
    "bench costs": literal_keys(MeasuredCosts.as_file),
    BENCH: literal_keys(bench_json),
    "acceptance": literal_keys(acceptance_json),
}


def rows(section: str) -> set[str]:
    """Return the fields of a section's table."""
    cells = re.findall(r"^\| (`[^|]+) \|", SECTIONS[section], re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def example(section: str) -> dict[str, Any]:
    """Return the example of a section; of a list the first object, of an error what is in it."""
    (text,) = re.findall(r"^```json\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)
    found = json.loads(text)
    found = found[0] if isinstance(found, list) else found
    return dict(found["error"] if section == "Errors" else found)


@pytest.mark.parametrize("section", PRINTED)
def test_every_field_that_is_printed_has_a_row_and_an_example(section: str) -> None:
    assert rows(section) == PRINTED[section] == example(section).keys()


def with_json(group: click.Group, prefix: str = "") -> Iterator[str]:
    """Yield the names of the commands that take --json."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from with_json(command, f"{name} ")
        elif any(parameter.name == "as_json" for parameter in command.params):
            yield prefix + name


def test_every_command_with_json_has_a_section() -> None:
    named = {name for title in SECTIONS for name in title.split(", ")}
    assert named == set(with_json(main)) | {"Errors"}


def test_the_fields_of_a_plan_are_those_of_a_real_one() -> None:
    config = read_config(Path("model_configs/llama70b_draft7b.yaml"))
    plan = plan_json(make_plan(config, Workspace(Path(), config.name)))
    assert plan.keys() == rows("plan")
    text = SECTIONS["plan"]
    for part in ("memory", "estimate"):
        (row,) = re.findall(rf"^\| `{part}` \|.*$", text, re.MULTILINE)
        assert all(f"`{key}`" in row for key in plan[part].keys() - {"estimate", "measured"})


def test_the_report_of_a_training_has_the_fields_of_its_record() -> None:
    section = "train medusa, train redrafter, train eagle3, train draft"
    assert example(section)["report"].keys() == fields(TrainingReport)


@pytest.mark.parametrize(
    ("command", "records"),
    [
        ("speculation", (SpeculationRow,)),
        ("serving", (ServingRow,)),
        ("front", (FrontRow,)),
        ("engine", (EngineRow, StepTime, PrefillRate)),
        ("tuning", (TuningRow,)),
        ("soak", (SoakRow, OutcomeCount, ProcessUsage)),
    ],
)
def test_the_rows_of_a_benchmark_are_listed(command: str, records: tuple[type, ...]) -> None:
    (item,) = re.findall(rf"^- `bench {command}`: (.*)$", SECTIONS[BENCH], re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", item)) - NOT_FIELDS  # of records
    assert named == {name for record in records for name in fields(record)}


def test_a_scenario_of_a_report_has_the_fields_that_are_listed() -> None:
    (scenario,) = example("validate")["scenarios"]
    assert scenario.keys() == literal_keys(result_json)
    (row,) = re.findall(r"^\| `scenarios` \|.*$", SECTIONS["validate"], re.MULTILINE)
    assert all(f"`{key}`" in row for key in scenario)


def test_the_configs_and_steps_of_an_acceptance_are_listed() -> None:
    (config,) = example("acceptance")["configs"]
    assert config.keys() == fields(ConfigResult) and config["steps"][0].keys() == fields(Outcome)
