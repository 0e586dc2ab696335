"""The model cards of `scripts/train-heads`: every figure of a report in its place."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from specpipe.core.artifacts import Workspace
from tests.helpers.trainings import KINDS, in_categories


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend("scripts")
    import training_cards

    return training_cards


@pytest.mark.parametrize("kind", ["medusa", "redrafter", "eagle3"])
def test_a_card_has_the_figures_of_its_report(
    kind: str, cards: ModuleType, make_run, workspace: Workspace, tmp_path: Path
) -> None:
    folder = KINDS[kind](make_run(**in_categories(tmp_path)), workspace).path
    report = json.loads((folder / "report.json").read_text())
    file = folder / "calibration.json"
    calibration = json.loads(file.read_text()) if file.is_file() else {}
    text = cards.card(cards.Trained(kind, report, calibration, "a" * 64, "b" * 64, 7, 90.4, 120.6))
    lines = text.splitlines()
    for name, values in {"all": report["after"], **report["categories"]}.items():
        shares = [value for key, value in values.items() if key.startswith("acceptance")]
        row = " | ".join([name, *(f"{share:.3f}" for share in [*shares, values["length"]])])
        assert f"| {row} |" in lines
    for head in report["heads"]:
        assert sum(f" {head['top'][4]:.3f} | " in line for line in lines) >= 1
    assert "| head | ahead |" in text or kind == "eagle3"
    assert "121 CPU minutes" in text and "a" * 64 in text and "; 7 prompts of" in text
    assert "{facts" not in text and "{trained" not in text and "{shown" not in text
