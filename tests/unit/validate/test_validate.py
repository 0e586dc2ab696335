"""Validation without a server: fakes with fixed answers, arithmetic worked out by hand."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from specpipe.config.run_config import read_config
from specpipe.core.endpoint import Endpoint, Serving
from specpipe.core.errors import ConfigError, GateFailed, StageFailed
from specpipe.core.prompts import read_prompts
from specpipe.engine.llmapi.endpoint import describe as describe_llmapi
from specpipe.engine.openvino.endpoint import describe
from specpipe.engine.tensorrt.endpoint import describe as describe_gpu
from specpipe.plan.gates import check_validation, plain_by, require_valid
from specpipe.serve.client import Acceptance, Generation, Options, Piece, collect
from specpipe.validate.arms import ServedArm, served_arms
from specpipe.validate.checks import Check, check_front, check_plain_arm
from specpipe.validate.conditions import Setting
from specpipe.validate.gates import GateResult, judge
from specpipe.validate.markdown import to_markdown
from specpipe.validate.measure import (
    ask_reference,
    ask_server,
    decode,
    decodes_alike,
    find_divergences,
)
from specpipe.validate.metrics import METRICS, Figure, load_metrics, speedups_by_prompt
from specpipe.validate.page import to_html
from specpipe.validate.questions import Question, Questions
from specpipe.validate.reference import ReferenceAnswer
from specpipe.validate.report import Report, to_json, write_report
from specpipe.validate.trials import (
    Arm,
    Divergence,
    ExpectedAnswer,
    Trial,
    Trials,
    find_divergence,
)
from specpipe.validate.validate import require_passed

RIGHT = (5, 6, 7, 8)
SPECULATING = [ServedArm("plain", 0), ServedArm("speculative")]


class FakeTokenizer:
    """Writes every token as a letter: 5 is `e`."""

    end_ids = (0,)

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(ord("`") + token) for token in tokens if token)

    def decode_answer(self, tokens: Sequence[int]) -> str:
        return self.decode(tokens[:-1] if tokens and tokens[-1] in self.end_ids else tokens)


class FakeReference:
    """Answers 5 6 7 8 in 4 seconds, the first after 1, always sure by 0.5."""

    def generate(
        self, prompt: Sequence[int], max_tokens: int, end_ids: Sequence[int]
    ) -> ReferenceAnswer:
        tokens = RIGHT[:max_tokens]
        return ReferenceAnswer(tokens, (0.5,) * len(tokens), 1.0, 4.0)


class FakeClient:
    """Answers like the reference, faster; prompt [9] is answered wrongly with speculation.

    Without speculation a token takes half a second; with it, steps of three tokens take as long.
    """

    endpoint: Endpoint = describe(Serving("prompt_lookup", 4))

    def tokens(self, asked: str, plain: bool) -> tuple[int, ...]:
        return (5, 6, 26) if asked == "9" and not plain else RIGHT

    def steps(self, asked: str, options: Options) -> Iterator[tuple[tuple[int, ...], Piece]]:
        plain = options.num_draft_tokens == 0
        tokens = self.tokens(asked, plain)[: options.max_tokens]
        size = 1 if plain else 3
        for i in range(0, len(tokens), size):
            part = tokens[i : i + size]
            used = Acceptance(0, 0) if plain else Acceptance(4 * (i // 3 + 1), 2)
            last = i + size >= len(tokens)
            count = len(tokens) if last else None
            yield part, Piece(FakeTokenizer().decode(part), (), last, used, count,
                              0.5 * (i // size + 1))  # fmt: skip

    def stream(self, text: str, options: Options) -> Iterator[Piece]:
        return (piece for _, piece in self.steps(text, options))

    def generate(self, text: str, options: Options, *, model: str = "") -> Generation:
        return collect(self.stream(text, options))

    def stream_tokens(self, prompt: Sequence[int], options: Options) -> Iterator[Piece]:
        steps = self.steps(str(prompt[0]), options)
        return (replace(piece, text="", tokens=part) for part, piece in steps)

    def collect(self, pieces: Iterator[Piece]) -> Generation:
        return collect(pieces)


def questions(prompts: Sequence[int]) -> Questions:
    asked = tuple(Question(str(prompt), (prompt,)) for prompt in prompts)
    return Questions(asked, FakeTokenizer())  # type: ignore[arg-type]


def run(
    prompts: Sequence[int],
    client: FakeClient | None = None,
    arms: Sequence[ServedArm] = SPECULATING,
    repeats: int = 1,
) -> Trials:
    """Measure as `validate` does, with the tokens of every arm."""
    options = replace(DEMO.validate, max_tokens=4, repeats=repeats)
    asked, client = questions(prompts), client or FakeClient()
    theirs, expected = ask_reference(FakeReference(), asked, options)  # type: ignore[arg-type]
    served = ask_server(client, arms, asked.asked, options)  # type: ignore[arg-type]
    decodings = [decode(client, arm, number, asked, 4)  # type: ignore[arg-type]
                 for arm in arms for number in range(len(prompts))]  # fmt: skip
    found = find_divergences(served, decodings, expected)
    return Trials((*theirs, *served), tuple(found), (), tuple(decodings))


DEMO = read_config(Path("model_configs/smollm2-135m_prompt-lookup.yaml"))


def figures(trials: Trials) -> dict[str, dict[str, Figure]]:
    return {metric.name: dict(metric.compute(trials)) for metric in load_metrics()}


def test_every_arm_sees_every_prompt_as_often_as_asked() -> None:
    trials = run([1, 2, 3], repeats=2)
    for arm in ("reference", "plain", "speculative"):
        assert [t.prompt for t in trials.of(arm)] == [0, 1, 2, 0, 1, 2]  # type: ignore[arg-type]


def test_the_reference_is_done_before_the_first_request_and_the_served_arms_take_turns() -> None:
    order = [t.arm for t in run([1, 2]).trials]
    assert order == ["reference", "reference", "plain", "speculative", "speculative", "plain"]


def test_without_speculation_there_is_no_third_arm() -> None:
    plain = read_config(Path("model_configs/smollm2-135m_none.yaml"))
    assert served_arms(plain, FakeClient.endpoint.text) == [ServedArm("plain")]
    assert served_arms(DEMO, FakeClient.endpoint.text) == SPECULATING


def test_a_divergence_is_found_in_the_text_and_located_by_tokens() -> None:
    (found,) = run([1, 9]).divergences
    assert found == Divergence(
        1, "speculative", 2, expected=7, got=26, margin=0.5, expected_text="gh", got_text="z"
    )


EXPECTED = ExpectedAnswer("efgh", (5, 6, 7, 8, 0), (0.5,) * 5, ended=True)


def answer(text: str, count: int = 5) -> Trial:
    return Trial(0, "plain", text, count, 0.1, 0.2)


@pytest.mark.parametrize(
    ("text", "count", "wrong", "early"),
    [("efgh", 5, False, False), ("efgh", 4, False, False), ("efxh", 5, True, False),
     ("ef", 2, True, True), ("efgh", 3, True, True), ("efghi", 6, True, False),
     ("", 0, True, True)],
)  # fmt: skip
def test_an_answer_is_judged_by_its_text_and_its_length(text, count, wrong, early) -> None:
    """A server may or may not count the end token; any other difference is one."""
    found = find_divergence(EXPECTED, [answer(text, count)], None)
    assert (found is not None) == wrong
    assert (found is not None and found.early) == early


def test_a_count_that_the_server_does_not_report_is_not_compared() -> None:
    assert EXPECTED.agrees(replace(answer("efgh", 9), counted=False))


def test_a_server_that_reports_no_tokens_is_measured_by_the_count_of_its_text() -> None:
    """As the `llmapi` model: without a count there would be no rates and no speed-ups."""

    class Silent(FakeClient):
        endpoint = describe_llmapi(Serving("eagle3", 3))

        def stream(self, text: str, options: Options) -> Iterator[Piece]:
            return (replace(p, output_tokens=None) for p in super().stream(text, options))

        def collect(self, pieces: Iterator[Piece]) -> Generation:
            whole = collect(pieces)
            return replace(whole, output_tokens=whole.output_tokens or len(whole.text))

    options = replace(DEMO.validate, max_tokens=4)
    arms = served_arms(DEMO, Silent.endpoint.text)
    (trial,) = ask_server(Silent(), arms, questions([1]).asked, options)  # type: ignore[arg-type]
    assert trial.arm == "speculative" and trial.output_tokens == 4 and not trial.counted
    assert replace(EXPECTED, tokens=(*RIGHT, 9)).agrees(trial)


def test_an_early_stop_is_a_figure_of_its_own_and_no_exact_match() -> None:
    class Hasty(FakeClient):
        def tokens(self, asked: str, plain: bool) -> tuple[int, ...]:
            return RIGHT if plain else RIGHT[:3]

    got = figures(trials := run([1, 2], Hasty()))
    assert got["early_stops"]["speculative"].median == 1 and got["exact_match"]["plain"].median == 1
    assert got["exact_match"]["speculative"].median == 0
    assert all(found.early and found.got is None for found in trials.divergences)
    gates = {"exact_match": 1.0, "early_stops": 0.0}
    for result in judge(gates, load_metrics(), got, "speculative"):  # type: ignore[arg-type]
        assert not result.passed


def test_a_plain_arm_that_speculates_fails_whatever_the_gates() -> None:
    class Deaf(FakeClient):
        """Takes no notice of a request's limit, as upstream's engines with heads."""

        def stream(self, text: str, options: Options) -> Iterator[Piece]:
            return super().stream(text, replace(options, num_draft_tokens=None))

    (honest,) = check_plain_arm(run([1]), reports=True)
    (caught,) = check_plain_arm(run([1], Deaf()), reports=True)
    assert honest.passed and not caught.passed
    assert str(caught) == "plain decoding does not speculate: 8 draft tokens"
    (unknown,) = check_plain_arm(run([1], Deaf()), reports=False)
    assert unknown.passed and "not known" in unknown.seen


def test_the_other_model_that_users_call_must_answer_alike() -> None:
    assert check_front("ensemble", "efgh", [answer("efgh")]).passed
    wrong = check_front("ensemble", "efgx", [answer("efgh")])
    assert not wrong.passed and str(wrong).endswith("'efgx' instead of 'efgh'")


def test_only_a_request_that_can_decode_plainly_has_a_plain_arm() -> None:
    medusa = describe_gpu(Serving("medusa", 8)).text
    lookahead = describe_gpu(Serving("lookahead", 8)).text
    build = replace(DEMO, validate=replace(DEMO.validate, baseline="build"))
    none = replace(DEMO, validate=replace(DEMO.validate, baseline="none"))
    assert (plain_by(DEMO, medusa), plain_by(DEMO, lookahead)) == ("none", "request")
    assert (plain_by(build, medusa), plain_by(build, lookahead)) == ("build", "build")
    assert plain_by(none, lookahead) == "none"
    assert served_arms(DEMO, medusa) == [ServedArm("speculative")]


def test_tokens_are_asked_only_of_a_model_that_decodes_as_the_text_model_does() -> None:
    """With a draft model in Triton, the model that takes tokens is the target by itself."""
    target = describe(Serving("draft_model", 3, loop="bls")).tokens
    assert decodes_alike(target, "plain") and not decodes_alike(target, "speculative")
    assert decodes_alike(FakeClient.endpoint.tokens, "speculative")
    assert not decodes_alike(None, "plain")


def test_metrics_by_hand() -> None:
    got = figures(run([1, 9]))
    assert got["exact_match"]["speculative"].median == 0.5
    assert got["exact_match"]["plain"].median == 1.0
    assert got["ttft_ms"]["reference"].median == 1000
    assert got["tpot_ms"]["reference"].median == 1000  # 3 s for 3 tokens
    assert got["tpot_ms"]["plain"].median == 500
    assert got["tokens_per_second"]["plain"].median == 2.0  # 4 tokens in 2 s
    assert got["speedup_over_reference"]["plain"].median == 2.0
    assert got["acceptance_rate"]["speculative"].median == 0.375  # of 2 in 8, and 2 in 4


def test_speedup_is_taken_prompt_by_prompt() -> None:
    got = figures(run([1]))
    assert got["speedup_over_plain"]["speculative"].median == 2.0  # 2 s against 1 s, 4 tokens each
    assert "plain" not in got["speedup_over_plain"]


def test_acceptance_length_counts_the_bonus_token() -> None:
    seen = run([1])
    assert figures(seen)["acceptance_length"]["speculative"].median == 2.0
    unseen = replace(seen, decodings=())  # 4 tokens of which 2 were drafted: two steps
    assert figures(unseen)["acceptance_length"]["speculative"].median == 2.0


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_declares_itself_and_bears_having_no_samples(name: str) -> None:
    metric = next(m for m in load_metrics() if m.name == name)
    assert metric.unit and metric.meaning.endswith(".")
    assert metric.compute(Trials((), ())) == {}


def test_gates_are_lower_or_upper_bounds_by_the_metrics_direction() -> None:
    trials = run([1, 9])
    gates = {"exact_match": 0.6, "ttft_ms": 600.0, "acceptance_rate": 0.3, "tpot_ms": 1.0}
    results = judge(gates, load_metrics(), figures(trials), "speculative")  # type: ignore[arg-type]
    assert {r.name: r.passed for r in results} == {
        "exact_match": False, "ttft_ms": True, "acceptance_rate": True, "tpot_ms": False,
    }  # fmt: skip


def test_a_gate_on_what_was_not_measured_fails() -> None:
    (result,) = judge({"acceptance_rate": 0.1}, load_metrics(), figures(Trials((), ())), "plain")  # type: ignore[arg-type]
    assert not result.passed and "not measured" in str(result)


DRAFTS = {"method": "prompt_lookup", "num_draft_tokens": 3}
WriteConfig = Callable[..., Path]


def refusals(path: Path, endpoint: Endpoint) -> list[str]:
    return [str(found) for found in check_validation(read_config(path), endpoint)]


def test_an_unknown_gate_is_refused_with_its_line(write_config: WriteConfig) -> None:
    path = write_config(speculation=DRAFTS, validate={"gates": {"exact_match": 1, "exactmatch": 1}})
    (found,) = refusals(path, describe(Serving("prompt_lookup", 3)))
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "exactm" in text)
    assert found.startswith(f"{path}:{line}: 'validate.gates.exactmatch': not a metric")
    assert "did you mean 'exact_match'" in found and "known: exact_match, " in found
    with pytest.raises(ConfigError, match="not a metric"):
        require_valid(read_config(path), describe(Serving("prompt_lookup", 3)))


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), ("", "no prompts"), ("nonsense", ":1: must be a JSON object")],
)
def test_prompts_that_cannot_be_read_are_refused_with_the_line(
    content: str | None, words: str, write_config: WriteConfig, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    if content is not None:
        file.write_text(content)
    path = write_config(validate={"prompts": str(file)})
    (found,) = refusals(path, describe(Serving("none")))
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "prompts" in text)
    assert found.startswith(f"{path}:{line}: 'validate.prompts'") and words in found


@pytest.mark.parametrize(
    ("gate", "serving", "baseline", "words"),
    [
        ("perplexity", Serving("none"), None, "perplexity is computed from the logits after every"),
        ("greedy_agreement", Serving("medusa", 8), "build", "does not serve"),
        ("speedup_over_plain", Serving("medusa", 8), None, "set validate.baseline: build to comp"),
        ("speedup_over_plain", Serving("medusa", 8), "none", "validate.baseline is none"),
        ("speedup_over_plain", Serving("medusa", 8), "build", ""),
        ("speedup_over_plain", Serving("lookahead", 8), None, ""),
    ],
)
def test_gates_that_nothing_can_meet_are_refused(
    gate: str, serving: Serving, baseline: str | None, words: str, write_config: WriteConfig
) -> None:
    options = {"gates": {gate: 1.0}, **({"baseline": baseline} if baseline else {})}
    path = write_config(speculation=DRAFTS, validate=options)
    found = refusals(path, describe_gpu(serving))
    assert len(found) == bool(words) and words in "".join(found)


def test_a_baseline_of_a_run_that_does_not_speculate_is_refused(write_config: WriteConfig) -> None:
    with pytest.raises(ConfigError, match=r"run.yaml:\d+: 'validate.baseline' is build, but this"):
        read_config(write_config(validate={"baseline": "build"}))


@pytest.fixture
def report() -> Report:
    config = read_config(Path("model_configs/smollm2-135m_prompt-lookup.yaml"))
    trials = run([1, 9])
    metrics, found = load_metrics(), figures(trials)
    gates = judge(config.validate.gates, metrics, found, "speculative")  # type: ignore[arg-type]
    setting = Setting("tensorrt_llm_bls", "request", None, {"openvino": "1"})
    checks = (Check("ensemble agrees", False, "another text"),)
    trials = replace(trials, omitted={"perplexity": "not served"})
    return Report(config, 2, metrics, found, trials, gates, setting, checks)  # type: ignore[arg-type]


def test_the_report_says_what_failed_in_every_form(report: Report, tmp_path: Path) -> None:
    page = write_report(report, tmp_path)
    raw = json.loads((tmp_path / "report.json").read_text())
    assert raw["passed"] is False and raw["gates"][0]["name"] == "exact_match"
    assert raw["acceptance_histogram"] == {"2": 2, "0": 1}
    for text in ((tmp_path / "report.md").read_text(), unescape(page.read_text())):
        assert "FAILED: exact_match = 0.50 (required: >= 1.00)" in text
        assert "token 2 is 26, expected 7; logit margin of the reference: 0.500" in text
        assert "FAILED: ensemble agrees: another text" in text
        assert "perplexity: not served" in text


def test_the_html_page_stands_alone_and_escapes(report: Report) -> None:
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
    with pytest.raises(GateFailed, match=r"exact_match = 0.50 \(required: >= 1.00\); ens"):
        require_passed(report)


def test_a_failed_check_fails_a_run_without_gates(report: Report) -> None:
    assert not replace(report, gates=()).passed and replace(report, gates=(), checks=()).passed
    with pytest.raises(GateFailed, match="^ensemble agrees: another text$"):
        require_passed(replace(report, gates=()))


def test_of_a_server_elsewhere_nothing_is_said_that_is_only_known_of_this_machine(
    report: Report,
) -> None:
    there = replace(report, setting=replace(report.setting, url="far.example:8001"))
    conditions = there.conditions()
    assert "machine" not in conditions and "versions" not in conditions
    assert conditions["server"].startswith("far.example:8001; its machine and versions are not")
    assert "while the server was running" in conditions["order"]


def test_the_chart_of_speedups_shows_the_medians_of_the_repeats() -> None:
    def trial(arm: Arm, total_s: float) -> Trial:
        return Trial(0, arm, "efgh", 4, 0.1, total_s)

    trials = Trials((*(trial("plain", s) for s in (8.0, 8.0, 1.0)),
                     *(trial("speculative", s) for s in (4.0, 4.0, 9.0))), ())  # fmt: skip
    shown = speedups_by_prompt(trials, "plain", "speculative")
    assert shown == {0: 2.0}
    assert figures(trials)["speedup_over_plain"]["speculative"].median == shown[0]


def test_a_server_that_dies_names_the_prompt_and_the_arm() -> None:
    class Dying(FakeClient):
        def stream(self, text: str, options: Options) -> Iterator[Piece]:
            if text == "2":
                raise StageFailed("no server answers")
            yield from super().stream(text, options)

    with pytest.raises(StageFailed, match=r"validate: prompt 1, \w+: no server answers"):
        run([1, 2], Dying())


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


def test_a_divergence_shows_its_tokens_as_text_and_ids(report: Report) -> None:
    text = to_markdown(replace(report, words={26: " cat", 7: " dog"}))
    assert "token 2 is 26 (' cat'), expected 7 (' dog'); logit margin" in text


@pytest.mark.parametrize(
    ("name", "bound", "value", "shown"),
    [
        ("exact_match", 0.995, 0.9949, "exact_match = 0.9949 (required: >= 0.995)"),
        ("exact_match", 1.0, 0.999999, "exact_match = 0.999999 (required: >= 1.00)"),
        ("ttft_ms", 1.0, 124.0, "ttft_ms = 124 (required: <= 1.00)"),
        ("speedup_over_plain", 1.2, None, "speedup_over_plain = not measured (required: >= 1.20)"),
    ],
)
def test_a_gate_shows_its_value_and_what_is_required(
    name: str, bound: float, value: float | None, shown: str
) -> None:
    assert str(GateResult(name, "speculative", bound, value, passed=False)) == shown
