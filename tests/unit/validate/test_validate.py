"""Validation without a server: fakes with fixed answers, arithmetic worked out by hand."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from specpipe.config import read_config
from specpipe.errors import ConfigError, GateFailed, StageFailed
from specpipe.prompts import read_prompts
from specpipe.serve.client import Acceptance, Options, Piece
from specpipe.validate.gates import check_gates_known, judge
from specpipe.validate.measure import measure
from specpipe.validate.metrics import METRICS, Figure, load_metrics
from specpipe.validate.reference import ReferenceAnswer
from specpipe.validate.report import Report, to_html, to_json, to_markdown, write_report
from specpipe.validate.trials import Divergence, Trial, Trials, find_divergence
from specpipe.validate.validate import require_passed

RIGHT = (5, 6, 7, 8)


class FakeReference:
    """Answers 5 6 7 8 in 4 seconds, the first after 1, always sure by 0.5."""

    def generate(
        self, prompt: Sequence[int], max_tokens: int, end_ids: Sequence[int]
    ) -> ReferenceAnswer:
        tokens = RIGHT[:max_tokens]
        return ReferenceAnswer(tokens, (0.5,) * len(tokens), 1.0, 4.0)


class FakeClient:
    """Answers like the reference, faster; prompt [9] is answered wrongly with speculation."""

    def stream_tokens(self, prompt: Sequence[int], options: Options) -> Iterator[Piece]:
        plain = options.num_draft_tokens == 0
        tokens = list(RIGHT[: options.max_tokens])
        if list(prompt) == [9] and not plain:
            tokens[2:] = [99]
        steps = [(t,) for t in tokens] if plain else [tuple(tokens[:3]), tuple(tokens[3:])]
        steps = [s for s in steps if s]
        for i, step in enumerate(steps):
            last = i == len(steps) - 1
            used = Acceptance(0, 0) if plain else Acceptance(4, 2)
            yield Piece("", step, last, used, len(tokens) if last else None,
                        0.5 * (i + 1))  # fmt: skip


def run(prompts: list[list[int]], **changes) -> Trials:
    options = {"max_tokens": 4, "end_ids": (0,), "repeats": 1, "speculates": True, **changes}
    return measure(FakeClient(), FakeReference(), prompts, **options)  # type: ignore[arg-type]


def figures(trials: Trials) -> dict[str, dict[str, Figure]]:
    return {metric.name: dict(metric.compute(trials)) for metric in load_metrics()}


def test_every_arm_sees_every_prompt_as_often_as_asked() -> None:
    trials = run([[1], [2], [3]], repeats=2)
    for arm in ("reference", "plain", "speculative"):
        assert [t.prompt for t in trials.of(arm)] == [0, 1, 2, 0, 1, 2]  # type: ignore[arg-type]


def test_the_arms_alternate_so_that_no_one_always_goes_first() -> None:
    order = [t.arm for t in run([[1], [2], [3]]).trials]
    assert {order[0], order[3], order[6]} == {"reference", "plain", "speculative"}


def test_without_speculation_there_is_no_third_arm() -> None:
    assert run([[1]], speculates=False).of("speculative") == []


def test_a_divergence_is_found_with_position_and_margin() -> None:
    (found,) = run([[1], [9]]).divergences
    assert found == Divergence(1, "speculative", 2, expected=7, got=99, margin=0.5)


@pytest.mark.parametrize(
    ("expected", "got", "position"),
    [((1, 2), (1, 2), None), ((1, 2), (1, 3), 1), ((1, 2), (1,), 1), ((1,), (1, 2), 1)],
)
def test_answers_of_different_length_diverge_where_one_ends(expected, got, position) -> None:
    found = find_divergence(0, "plain", expected, got, (0.1,) * len(expected))
    assert (found.position if found else None) == position


def test_metrics_by_hand() -> None:
    got = figures(run([[1], [9]]))
    assert got["exact_match"]["speculative"].median == 0.5
    assert got["exact_match"]["plain"].median == 1.0
    assert got["ttft_ms"]["reference"].median == 1000
    assert got["time_per_token_ms"]["reference"].median == 1000  # 3 s for 3 tokens
    assert got["time_per_token_ms"]["plain"].median == 500
    assert got["tokens_per_second"]["plain"].median == 2.0  # 4 tokens in 2 s
    assert got["speedup_over_reference"]["plain"].median == 2.0
    assert got["acceptance_rate"]["speculative"].median == 0.5


def test_speedup_is_taken_prompt_by_prompt() -> None:
    got = figures(run([[1]]))
    assert got["speedup_over_plain"]["speculative"].median == 2.0  # 2 s against 1 s, 4 tokens each
    assert "plain" not in got["speedup_over_plain"]


def test_acceptance_length_counts_the_bonus_token() -> None:
    assert figures(run([[1]]))["acceptance_length"]["speculative"].median == 2.0


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_declares_itself_and_bears_having_no_samples(name: str) -> None:
    metric = next(m for m in load_metrics() if m.name == name)
    assert metric.unit and metric.meaning.endswith(".")
    assert metric.compute(Trials((), ())) == {}


def test_gates_are_lower_or_upper_bounds_by_the_metrics_direction() -> None:
    trials = run([[1], [9]])
    gates = {"exact_match": 0.6, "ttft_ms": 600.0, "acceptance_rate": 0.5, "time_per_token_ms": 1.0}
    results = judge(gates, load_metrics(), figures(trials), "speculative")  # type: ignore[arg-type]
    assert {r.name: r.passed for r in results} == {
        "exact_match": False, "ttft_ms": True, "acceptance_rate": True, "time_per_token_ms": False,
    }  # fmt: skip


def test_a_gate_on_what_was_not_measured_fails() -> None:
    (result,) = judge({"acceptance_rate": 0.1}, load_metrics(), figures(Trials((), ())), "plain")  # type: ignore[arg-type]
    assert not result.passed and "not measured" in str(result)


def test_unknown_gates_are_named() -> None:
    with pytest.raises(ConfigError, match="speed: not a metric"):
        check_gates_known({"speed": 1.0}, "demo.yaml")


@pytest.fixture
def report() -> Report:
    config = read_config(Path("model_configs/smollm2-135m_prompt-lookup.yaml"))
    trials = run([[1], [9]])
    metrics, found = load_metrics(), figures(trials)
    gates = judge(config.validate.gates, metrics, found, "speculative")  # type: ignore[arg-type]
    return Report(config, 2, metrics, found, trials, gates, {"openvino": "1"})  # type: ignore[arg-type]


def test_the_report_says_what_failed_in_every_form(report: Report, tmp_path: Path) -> None:
    page = write_report(report, tmp_path)
    raw = json.loads((tmp_path / "report.json").read_text())
    assert raw["passed"] is False and raw["gates"][0]["name"] == "exact_match"
    assert raw["acceptance_histogram"] == {"2": 2, "0": 1}
    for text in ((tmp_path / "report.md").read_text(), page.read_text()):
        assert "FAILED: exact_match of speculative is 0.5, the gate is 1" in text
        assert "token 2 is 99, expected 7; the reference preferred its token by 0.500" in text


def test_the_html_page_stands_alone_and_escapes(report: Report) -> None:
    from dataclasses import replace

    evil = replace(report, config=replace(report.config, name="<script>"))
    page = to_html(evil)
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "http://" not in page and "https://" not in page and "src=" not in page
    assert page.index("FAILED: exact_match") < page.index("<h2>Figures</h2>")


def test_thousands_are_written_out(report: Report) -> None:
    text = to_markdown(report)
    assert "| ttft_ms (ms) | 1000 | 500 |" in text and "e+03" not in to_html(report)


def test_conditions_come_with_the_figures(report: Report) -> None:
    conditions = to_json(report)["conditions"]
    assert isinstance(conditions, dict)
    assert {"model", "method", "backend", "machine", "load", "versions"} <= set(conditions)
    assert "speedup_over_plain (x) | - | - | 2" in to_markdown(report)


def test_a_failed_gate_raises_with_its_figures(report: Report) -> None:
    with pytest.raises(GateFailed, match="exact_match of speculative is 0.5, the gate is 1"):
        require_passed(report)


def test_a_server_that_dies_names_the_prompt_and_the_arm() -> None:
    class Dying(FakeClient):
        def stream_tokens(self, prompt, options):
            if list(prompt) == [2]:
                raise StageFailed("no server answers")
            yield from super().stream_tokens(prompt, options)

    with pytest.raises(StageFailed, match=r"validate: prompt 1, \w+: no server answers"):
        measure(Dying(), FakeReference(), [[1], [2]], max_tokens=4, end_ids=(0,), repeats=1,
                speculates=True)  # type: ignore[arg-type]  # fmt: skip


def test_a_trial_of_the_reference_has_no_steps() -> None:
    assert Trial(0, "reference", (1,), 1.0, 1.0).step_tokens == ()


def test_prompts_come_from_a_file_or_with_us(tmp_path: Path) -> None:
    assert len(read_prompts(None)) == 20
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a\u2028a"}\n\n{"prompt": "b"}\r\n')
    assert read_prompts(file) == ["a\u2028a", "b"]


def test_a_prompt_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b'{"prompt": "caf\xe9"}')
    for path in (tmp_path / "latin", tmp_path):
        with pytest.raises(ConfigError, match="give a file of JSON lines in UTF-8"):
            read_prompts(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [("nonsense", ":1: must be a JSON object"), ('{"text": "a"}', ":1: must be"),
     ('{"prompt": "a"}\n{"prompt": 5}', ':2: "prompt" must be a text'), ("", "no prompts")],
)  # fmt: skip
def test_bad_prompt_files_are_refused_with_the_line(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_prompts(file)
