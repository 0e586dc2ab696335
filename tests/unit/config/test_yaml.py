"""YAML as people write it: numbers, anchors, merges; and what is no config is one sentence."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from specpipe.checkpoint.drafter import read_calibration
from specpipe.config.files import find_file
from specpipe.config.run_config import RunConfig, read_config
from specpipe.config.yaml_nodes import DEEPEST, MOST_BYTES
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import ConfigError, SpecpipeError
from specpipe.core.prompts import read_prompts
from specpipe.plan.make_plan import make_plan
from specpipe.report.plan_json import plan_json
from specpipe.report.present_plan import plan_text

GOOD = """\
name: demo
target: {model: some/where}
engine: {backend: openvino}
"""


def read(folder: Path, text: str) -> RunConfig:
    path = folder / "demo.yaml"
    path.write_text(text)
    return read_config(path)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-3", 1e-3), ("1E-3", 1e-3), ("2.5e-4", 2.5e-4), ("+1e-2", 0.01), (".5", 0.5), ("1", 1.0)],
)
def test_numbers_are_read_as_people_write_them(written: str, value: float, tmp_path: Path) -> None:
    config = read(
        tmp_path, f"{GOOD}train: {{medusa: {{schedule: {{learning_rate: {written}}}}}}}\n"
    )
    assert config.train.medusa.schedule.learning_rate == value


@pytest.mark.parametrize("written", ["010", "20:48", "0b11", "1e3", "1_0.", "!!int x", ".nan"])
def test_what_only_looks_like_a_whole_number_is_none(written: str, tmp_path: Path) -> None:
    text = GOOD.replace("openvino", f"openvino, max_seq_len: {written}")
    assert "demo.yaml:3: 'engine.max_seq_len' is " in refusal(tmp_path, text)
    assert "must be a whole number" in refusal(tmp_path, text)


@pytest.mark.parametrize("written", [".nan", ".inf", "-.inf", "1e400", "!!float abc"])
def test_a_number_is_finite(written: str, tmp_path: Path) -> None:
    text = GOOD + f"validate: {{gates: {{exact_match: {written}}}}}\n"
    assert "demo.yaml:4: 'validate.gates.exact_match' is" in refusal(tmp_path, text)


MERGED = """\
x-schedules:
  slow: &slow
    epochs: 3
    learning_rate: 1e-4
  long: &long {epochs: 7, batch_tokens: 64}
name: demo
target: {model: some/where}
engine: {backend: openvino}
train:
  medusa: {schedule: *slow}
  draft:
    schedule:
      <<: [*slow, *long]
      epochs: 5
"""


def test_anchors_and_merges_give_what_they_stand_for(tmp_path: Path) -> None:
    train = read(tmp_path, MERGED).train
    assert (train.medusa.schedule.epochs, train.medusa.schedule.learning_rate) == (3, 1e-4)
    merged = train.draft.schedule
    assert (merged.epochs, merged.learning_rate, merged.batch_tokens) == (5, 1e-4, 64)
    raw = yaml.safe_load(MERGED)["train"]["draft"]["schedule"]  # PyYAML's own merge
    assert (raw["epochs"], raw["batch_tokens"]) == (merged.epochs, merged.batch_tokens)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("learning_rate: 1e-4", "learning_rate: 7", 4, "is 7.0: must be at most 1"),
        ("batch_tokens: 64", "batch: 64", 5, "unknown key 'train.draft.schedule.batch'"),
        ("<<: [*slow, *long]", "<<: 5", 13, "'<<' must name a mapping, or a list of mappings"),
        ("<<: [*slow, *long]", "<<: [*slow, 5]", 13, "'<<' must name a mapping"),
        ("      epochs: 5", "      epochs: 5\n      epochs: 6", 15, "epochs' is given twice"),
        ("*long", "*lonk", 13, "found undefined alias 'lonk'"),
        ("x-schedules", "schedules", 1, "unknown key 'schedules'"),
    ],
)
def test_a_fault_in_a_merged_mapping_has_the_line_where_it_is_written(
    old: str, new: str, line: int, words: str, tmp_path: Path
) -> None:
    message = refusal(tmp_path, MERGED.replace(old, new))
    assert f"demo.yaml:{line}: " in message and words in message


@pytest.mark.parametrize(
    "deep",
    ["[" * 5000, "{a: " * 5000, "\n" + "\n".join(" " * i + "a:" for i in range(1, 500))],
)
def test_deep_nesting_is_a_sentence(deep: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, f"{GOOD}train: {deep}\n")
    assert f"not valid YAML: it is more than {DEEPEST} levels deep" in message


def test_nesting_through_aliases_is_bounded(tmp_path: Path) -> None:
    chain = "".join(f"  - &a{i} [*a{i - 1}]\n" for i in range(1, 500))
    assert "levels deep" in refusal(tmp_path, f"{GOOD}x-a:\n  - &a0 [1]\n{chain}")


@pytest.mark.parametrize("step", ["[{}, {}, {}]", "{{<<: [{}, {}, {}]}}"], ids=["lists", "merges"])
def test_what_aliases_multiply_into_is_bounded(step: str, tmp_path: Path) -> None:
    lines = ["  - &a0 {epochs: 1}"]
    lines += [f"  - &a{i} {step.format(*[f'*a{i - 1}'] * 3)}" for i in range(1, 12)]
    message = refusal(tmp_path, GOOD + "x-a:\n" + "\n".join(lines) + "\ntrain: *a9\n")
    assert "has more than 20000 values" in message and "demo.yaml:1" in message


@pytest.mark.parametrize("loop", ["&a [*a]", "&a {<<: *a}", "&a {draft: *a}"])
def test_a_value_inside_itself_is_refused(loop: str, tmp_path: Path) -> None:
    assert "demo.yaml:4: not valid YAML: this value contains itself" in refusal(
        tmp_path, f"{GOOD}train: {loop}\n"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "? [a, b]\n: 1\n", "demo.yaml:4: a key must be a word"),
        (GOOD + "name: demo\n", "demo.yaml:4: 'name' is given twice"),
        (GOOD + '"name": demo\n', "demo.yaml:4: 'name' is given twice"),
        (GOOD + "---\n" + GOOD, "demo.yaml:4: not valid YAML: expected a single document"),
        ("x" * (MOST_BYTES + 1), "is larger than 256 KiB"),
        (GOOD + "y" * 1000 + ": 1\n", "demo.yaml:4: unknown key 'yyyyyyyyyy"),
        (GOOD + "path: here\n", "demo.yaml:4: unknown key 'path'\n  hint: known: name, target,"),
    ],
)
def test_what_is_no_config_is_refused_in_a_short_sentence(
    text: str, words: str, tmp_path: Path
) -> None:
    message = refusal(tmp_path, text)
    assert words in message and len(message) < 500


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_bytes(GOOD.encode() + b"validate: {prompts: caf\xe9.jsonl}\n")
    with pytest.raises(ConfigError, match=r"demo.yaml:4: cannot be read: it is not UTF-8"):
        read_config(path)


def test_a_name_that_no_file_can_have_is_no_file(tmp_path: Path) -> None:
    config = read(tmp_path, GOOD)
    for name in ("x" * 5000, "a\0b", "", " ", "~nobody-of-this-name/file"):
        assert find_file(name, config) is None


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("prompts.jsonl", read_prompts),
        ("calibration.json", lambda path: read_calibration(path.parent, None)),
    ],
)
def test_deeply_nested_json_is_a_sentence(name: str, reader, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text("[" * 100_000 + "\n")
    with pytest.raises(ConfigError, match=name):
        reader(file)


WRONG = (
    *("", "null", "true", "-1", "0", "7", "10000000000000000000000000", "1e400", ".nan", "1e-3"),
    *("[]", "[[]]", "{}", "[1, a]", "{a: 1}", "text", "'~'", "'/'", '"a\\0b"'),
    "'" + "x" * 5000 + "'",
    *("2024-01-01", "!!int x", "!!float x", "!!bool x", "!!python/object:os.system {}", "*nothing"),
    *("&a [*a]", "none", "auto", "model_configs", "README.md"),
)  # fmt: skip
MARK = "to-be-replaced"


def keys(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value in a YAML file, the first item of every list included."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, inner in inside:
        yield (*before, key)
        if isinstance(inner, (dict, list)):
            yield from keys(inner, (*before, key))


def with_value(text: str, place: tuple[Any, ...], value: str) -> str:
    raw = yaml.safe_load(text)
    holder = raw
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = MARK
    return yaml.safe_dump(raw, width=10**6).replace(MARK, value)


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(Path("model_configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_whatever_stands_in_a_config_is_planned_or_refused_in_a_sentence(
    file: Path, tmp_path: Path
) -> None:
    text = file.read_text()
    for number, place in enumerate(keys(yaml.safe_load(text))):
        for value in [WRONG[(number * 3 + i) % len(WRONG)] for i in range(3)]:
            try:
                config = read(tmp_path, with_value(text, place, value))
            except ConfigError as error:
                assert "demo.yaml:" in str(error), f"no line, for {place} {value}"
                continue
            try:
                plan = make_plan(config, Workspace(tmp_path, config.name))
                assert plan_text(plan) and json.dumps(plan_json(plan))
            except SpecpipeError as error:
                assert str(error)
