"""The tuned run is written so that it works where it lies, and tells what was measured."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from specpipe.cli.present_tuning import tuning_json, tuning_text
from specpipe.config.files import find_file
from specpipe.config.run_config import read_config
from specpipe.config.speculation import PLAIN, Medusa, PromptLookup, Speculation
from specpipe.core.errors import ConfigError
from specpipe.tune.cost import CostCurve
from specpipe.tune.machine_load import MachineLoad
from specpipe.tune.result import Prediction, Raced, Tuning
from specpipe.tune.settings import write_settings
from specpipe.validate.metrics import figure

LOOKUP = PromptLookup("prompt_lookup")
QUIET = MachineLoad(cpus=2, before=0.1, during=2.0, others=0.05)


def measured(options: Speculation, predicted: float, speedup: float) -> Raced:
    fast = figure([10 / speedup * share for share in (0.9, 1.0, 1.2)])
    spread = figure([speedup * share for share in (0.8, 1.0, 1.1)])
    return Raced(options, predicted, fast, figure([9.0, 10.0, 12.0]), spread, speedup)


def tuning_of(best: Speculation, *found: Raced, load: MachineLoad = QUIET) -> Tuning:
    tried = [Prediction(one.options, 1.74, 9.31, one.predicted) for one in found]
    tried = sorted(tried, key=lambda p: -p.speedup) or [Prediction(best, 1.74, 9.31, 1.52)]
    held = Prediction(best, 1.68, 9.75, 1.47)
    curve = CostCurve((1, 8), (11.5, 12.6))
    return Tuning(best, tuple(tried), held, found, curve, 37, (), not found, load)


def run_in(folder: Path, speculation: str, validate: str = "") -> Path:
    """Return a config in `folder` with heads and prompts next to it."""
    (folder / "heads/mine").mkdir(parents=True)
    (folder / "prompts.jsonl").touch()
    file = folder / "run.yaml"
    file.write_text(
        "# mine\nname: a\ntarget: {model: org/name}  # a name, no path\n"
        f"speculation:  # now\n{speculation}\n# how it is built\nengine: {{backend: openvino}}\n"
        f"validate:\n  prompts: prompts.jsonl\n{validate}"
    )
    return file


HEADS = "  method: medusa\n  # mine\n  heads: heads/mine\n  num_draft_tokens: 4\n"


@pytest.mark.parametrize("place", ["runs", "runs/deep/er", "other", "cwd"])
def test_a_tuned_file_finds_its_files_from_any_directory(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_config(run_in(tmp_path / "runs", HEADS))
    best = Medusa("medusa", "heads/mine", 2, ((0,), (0, 1)))
    out = tmp_path / place / "tuned.yaml"
    write_settings(config, out, tuning_of(best, measured(best, 1.5, 1.4)))
    for start in (tmp_path, tmp_path / place):
        monkeypatch.chdir(start)
        tuned = read_config(out)
        assert isinstance(tuned.speculation, Medusa) and tuned.target.model == "org/name"
        assert replace(tuned.speculation, heads="heads/mine") == best
        for text, file in (
            (tuned.speculation.heads, "runs/heads/mine"),
            (tuned.validate.prompts, "runs/prompts.jsonl"),
        ):
            assert text and find_file(text, tuned) == tmp_path / file
    assert "# how it is built\nengine:" in out.read_text()


@pytest.mark.parametrize("start", ["cwd", "y/z"])
def test_a_path_names_the_files_that_were_tuned_where_others_have_the_same_name(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory comes first. Where it would hide the file, the path is absolute."""
    file = run_in(tmp_path / "runs", HEADS)
    for other in ("cwd/heads/mine", "y/runs/heads/mine", "y/z"):
        (tmp_path / other).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / start)
    config, best = read_config(file), Medusa("medusa", "heads/mine", 4)
    meant = find_file("heads/mine", config)
    assert meant == tmp_path / ("cwd/heads/mine" if start == "cwd" else "runs/heads/mine")
    out = tmp_path / "x/tuned.yaml"
    write_settings(config, out, tuning_of(best, measured(best, 1.5, 1.4)))
    tuned = read_config(out)
    assert isinstance(tuned.speculation, Medusa)
    assert find_file(tuned.speculation.heads, tuned) == meant
    assert Path(tuned.speculation.heads).is_absolute() is (start == "y/z")


def test_the_drafter_stays_in_the_file_where_plain_decoding_is_best(tmp_path: Path) -> None:
    gates = "  baseline: build\n  gates:\n    speedup_over_plain: 1.0\n"
    config = read_config(run_in(tmp_path / "runs", HEADS, gates))
    heads, out = Medusa("medusa", "heads/mine", 4), tmp_path / "out/tuned.yaml"
    remarks = write_settings(config, out, tuning_of(PLAIN, measured(heads, 1.34, 0.91)))
    assert read_config(out).speculation == PLAIN
    text = out.read_text()
    assert "plain decoding: no setting was faster when it was measured" in text
    assert [line.split(",")[0].split(" ")[0] for line in remarks] == [
        "validate.baseline", "validate.gates.speedup_over_plain", "method",
    ]  # fmt: skip
    # The comment, put in place of the section, is the run as it was.
    kept = text[text.index("# speculation:") : text.index("# how it is built")]
    again = text[: text.index("# Tuned by")] + re.sub(r"^# ?", "", kept, flags=re.MULTILINE)
    out.write_text(again + text[text.index("# how it is built") :])
    found = read_config(out).speculation
    assert isinstance(found, Medusa) and found.num_draft_tokens == 4
    assert find_file(found.heads, read_config(out)) == tmp_path / "runs/heads/mine"


def test_a_second_tuning_replaces_the_notes_of_the_first(tmp_path: Path) -> None:
    file = run_in(tmp_path / "runs", "  method: prompt_lookup\n")
    for speedup in (1.4, 1.2):
        best = tuning_of(LOOKUP, measured(LOOKUP, 1.5, speedup))
        write_settings(read_config(file), file, best)
    text = file.read_text()
    assert text.count("Tuned by") == 1 and "1.20x measured (0.96 to 1.32 by prompt)" in text
    assert text.startswith("# mine\nname: a\n")


def test_a_measurement_that_contradicts_the_prediction_is_told() -> None:
    """Predicted 1.34x, measured 0.91x: that is no improvement."""
    wrong = tuning_of(PLAIN, measured(LOOKUP, 1.34, 0.91))
    words = "contradicts the prediction (predicted 1.34x, measured 0.91x): none is best here"
    assert words in tuning_text(wrong) and words in tuning_json(wrong)["contradiction"]
    other = PromptLookup("prompt_lookup", 3)
    changed = tuning_of(other, measured(other, 1.2, 1.25), measured(LOOKUP, 1.34, 0.91))
    assert "(predicted 1.34x, measured 0.91x) was not the fastest" in tuning_text(changed)
    right = tuning_of(LOOKUP, measured(LOOKUP, 1.34, 1.3), measured(other, 1.2, 1.25))
    assert right.contradiction is None and "note" not in tuning_text(right)


def test_the_text_of_a_tuning_has_every_figure_of_its_json_and_the_spread() -> None:
    tuning = tuning_of(LOOKUP, measured(LOOKUP, 1.52, 1.43))
    text, figures = tuning_text(tuning), tuning_json(tuning)
    for key in ("tokens_per_step", "predicted_speedup", "measured_speedup", "break_even_batch"):
        value = figures[key]
        shown = str(value) if isinstance(value, int) else f"{value or 0:.2f}"
        assert re.search(rf"\b{re.escape(shown)}", text), f"{key} {shown}"
    assert "1.43x [1.14, 1.57]" in text and "10.0 [9.0, 12.0]" in text
    priced = tuning_text(tuning_of(LOOKUP))
    assert "not measured: the step times are of another machine" in priced


def test_a_machine_that_is_not_quiet_is_told_in_text_json_and_file(tmp_path: Path) -> None:
    busy = replace(QUIET, others=0.8)
    tuning = tuning_of(LOOKUP, measured(LOOKUP, 1.5, 1.4), load=busy)
    assert "NOT QUIET" in tuning_text(tuning) and "used 0.8 CPUs" in tuning_text(tuning)
    assert tuning_json(tuning)["machine"]["disturbed"]
    file = run_in(tmp_path / "runs", "  method: prompt_lookup\n")
    write_settings(read_config(file), file, tuning)
    assert "# The machine was not quiet." in file.read_text()
    assert "NOT" not in tuning_text(replace(tuning, load=QUIET))


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "a", "target": {"model": "m"}, "engine": {"backend": "openvino"}}\n',
        "name: a\ntarget: {model: m}\nengine: {backend: openvino}\n"
        "speculation: &s {method: none}\nx-also: *s\n",
    ],
    ids=["JSON", "an anchor in the section"],
)
def test_a_file_whose_section_cannot_be_replaced_is_left_as_it_is(
    text: str, tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="is not laid out in lines") as caught:
        write_settings(read_config(file), file, tuning_of(LOOKUP))
    assert '"method": "prompt_lookup"' in str(caught.value) and file.read_text() == text
