"""Tuning: a replay takes the very steps of serving, prices add up, the choice goes back as YAML."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specpipe.artifacts import Workspace
from specpipe.assembly import Deployment
from specpipe.config import read_config
from specpipe.contracts import Guesses, Sampling, Scores
from specpipe.errors import ConfigError, Unsupported
from specpipe.methods import (
    DrafterOptions,
    DraftModel,
    DraftOptions,
    Hybrid,
    Lookahead,
    Medusa,
    NoSpeculation,
    PromptLookup,
    ReDrafter,
    Speculation,
)
from specpipe.present import settings_text
from specpipe.speculate.decode import Limits
from specpipe.trees import complete_tree
from specpipe.tune.candidates import candidates, possible_methods
from specpipe.tune.cost import CostCurve, Costs, measure_cost, read_costs, rising
from specpipe.tune.replay import ReplayedStep, replay
from specpipe.tune.settings import replace_speculation
from specpipe.tune.trace import Trace, head_accuracy, record
from specpipe.tune.tune import _price
from specpipe.tuning import Prices, on_this_machine, recommend_run, tune_run
from tests.models import make_heads, make_redrafter

PROMPT = [5, 9, 40, 41, 42, 9, 40, 41, 5, 9]
COST = CostCurve((1, 4, 8), (10.0, 10.0, 14.0))


@pytest.fixture(scope="module")
def deployment(tiny: Path, draft_engine, make_engine, tmp_path_factory) -> Deployment:
    folder = tmp_path_factory.mktemp("heads")
    make_heads(folder, seed=6)
    engines = {"target": make_engine(tiny, heads=folder), "draft": draft_engine}
    return Deployment(engines, NoSpeculation())


@pytest.fixture(scope="module")
def trace(deployment: Deployment) -> Trace:
    runners = {role: engine.runner() for role, engine in deployment.engines.items()}
    return record(runners, PROMPT, 60, (), guesser="heads")


@pytest.mark.parametrize(
    "options",
    [
        NoSpeculation(),
        PromptLookup("prompt_lookup", 5, 1, 3),
        DraftModel("draft_model", DraftOptions(""), 3),
        Medusa("medusa", "", 4, complete_tree([(0, 0), (1,), (2,)])),
        Medusa("medusa", "", 5, "dynamic"),
    ],
    ids=lambda options: options.method,
)
def test_a_replay_takes_the_steps_of_serving(
    options: Speculation, deployment: Deployment, trace: Trace
) -> None:
    slot = replace(deployment, speculation=options).slot()
    served = list(slot.decode(PROMPT, Sampling(), Limits(60)))
    replayed = replay(options, trace, deployment.engines["target"].runner())
    assert [t for step in served for t in step.tokens] == list(trace.output)
    assert [step.emitted for step in replayed] == [len(step.tokens) for step in served]
    assert [step.depth for step in replayed] == [step.drafted for step in served]


@pytest.mark.parametrize(
    "options",
    [
        ReDrafter("redrafter", "", 2, 3),
        Hybrid("hybrid", None, 6, 1, 3, redrafter=DrafterOptions("", 2, 3)),
    ],
    ids=lambda options: options.method,
)
def test_a_replay_with_a_drafter_takes_the_steps_of_serving(
    options: Speculation, tiny: Path, make_engine, tmp_path: Path
) -> None:
    make_redrafter(tmp_path, seed=6)
    engine = make_engine(tiny, redrafter=tmp_path)
    slot = Deployment({"target": engine}, options).slot()
    served = list(slot.decode(PROMPT, Sampling(), Limits(60)))
    recorded = record({"target": engine.runner()}, PROMPT, 60, (), guesser="drafter")
    replayed = replay(options, recorded, engine.runner())
    assert [t for step in served for t in step.tokens] == list(recorded.output)
    assert [step.emitted for step in replayed] == [len(step.tokens) for step in served]
    assert [step.depth for step in replayed] == [step.drafted for step in served]
    assert 1 <= max(step.head_calls for step in replayed) <= 3  # one a level that is worth it
    assert all(step.propose_ms >= 0 for step in replayed)


@pytest.mark.parametrize("length", [1, 2, 13, 60])
def test_an_answer_is_recorded_as_plain_decoding_gives_it(
    length: int, deployment: Deployment, trace: Trace
) -> None:
    """Its end lies inside what a step emits as well as at a step's end."""
    runners = {role: engine.runner() for role, engine in deployment.engines.items()}
    end_id = trace.output[length - 1]
    until = trace.output[: trace.output.index(end_id) + 1]
    for found, whole in (
        (record(runners, PROMPT, 60, (10**6, end_id), guesser="heads"), until),
        (record(runners, PROMPT, length, (), guesser="heads"), trace.output[:length]),
    ):
        assert found.output == whole and len(found.guesses) == len(whole)
        for one, other in zip(found.guesses, trace.guesses, strict=False):
            assert one.tokens.tolist() == other.tokens.tolist()


def test_head_accuracy_by_hand() -> None:
    def guesses(*rows: list[int]) -> Guesses:
        tokens = np.array([row + [-1] * (10 - len(row)) for row in rows])
        return Guesses(tokens, np.ones(tokens.shape))

    trace = Trace((1,), (7, 8, 9, 7), (
        guesses([8, 0], [0, 9]),  # right first; then right second
        guesses([0, 9], [0, 0]),  # right second; then wrong
        guesses([0, 0], [9, 9]),  # wrong; the second head is not reached
        guesses([0, 0], [0, 0]),  # nothing follows
    ))  # fmt: skip
    first, second = head_accuracy([trace])
    assert first[:2] == [1 / 3, 1 / 3] and second[:2] == [0, 1 / 2]


def test_costs_are_interpolated_and_go_on_with_the_last_slope() -> None:
    assert [COST(rows) for rows in (1, 2, 6, 8, 12)] == [10, 10, 12, 14, 18]


def test_break_even_is_the_largest_batch_that_pays() -> None:
    # Two tokens a step of four rows: T(4 b) = 10 + (4 b - 4) against 2 T(b).
    expected = max(b for b in range(1, 257) if 2 * COST(b) > COST(4 * b))
    assert COST.break_even_batch(4, 2.0) == expected
    assert COST.break_even_batch(8, 1.0) == 0


def test_costs_that_fall_get_their_mean() -> None:
    assert rising([10, 14, 12, 13, 20]) == (10, 13, 13, 13, 20)
    assert rising([3, 2, 1]) == (2, 2, 2)
    assert rising([1, 2, 3]) == (1, 2, 3)


def test_a_change_of_width_is_paid_unless_steps_are_padded() -> None:
    steps = [ReplayedStep(rows, 0, 1, 0.0) for rows in (1, 1, 4, 1)]
    options = PromptLookup("prompt_lookup", 7)
    assert _price(Costs(COST), options, steps) == 40
    assert _price(Costs(COST, change_ms=3.0), options, steps) == 40 + 2 * 3
    padded = Costs(COST, pads_steps=True, change_ms=3.0)
    assert _price(padded, options, steps) == 10 + 10 + 14 + 14 + 3  # from the first guess on


def test_measured_costs_never_fall(deployment: Deployment) -> None:
    cost, change_ms = measure_cost(deployment.engines["target"].runner(), PROMPT, 9)
    assert change_ms >= 0
    assert cost.rows == (1, 2, 3, 4, 6, 8, 9)
    assert list(cost.ms) == sorted(cost.ms) and cost.ms[0] > 0


def test_a_replay_counts_the_calls_of_heads_and_draft(deployment: Deployment, trace: Trace) -> None:
    target = deployment.engines["target"].runner()
    heads = replay(Medusa("medusa", "", 4, "dynamic"), trace, target)
    assert [step.head_calls for step in heads][1:-1] == [1] * (len(heads) - 2)
    draft = replay(DraftModel("draft_model", DraftOptions(""), 3), trace, target)
    assert all(step.draft_calls == step.depth for step in draft)
    both = replay(Hybrid("hybrid", heads="", tree="dynamic"), trace, target)
    assert 0 < sum(step.head_calls for step in both) <= len(both)


def test_the_costs_of_another_machine_are_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"step_ms": {"8": 15, "1": 14}, "heads_ms": 0.5}))
    costs = read_costs(file)
    assert costs.step(1) == 14 and costs.step(8) == 15 and costs.heads_ms == 0.5
    for bad in ({"step_ms": {"1": 14}}, {"step_ms": {"2": 1, "3": 2}}, {"heads_ms": 1}, [],
                {"step_ms": {"1": 14, "8": 15}, "head_ms": 1}):  # fmt: skip
        file.write_text(json.dumps(bad))
        with pytest.raises(ConfigError, match="not a cost model"):
            read_costs(file)


def test_methods_need_nothing_or_what_the_run_brings() -> None:
    def names(options: Speculation) -> list[str]:
        return [found.method for found in possible_methods(options)]

    free = ["prompt_lookup", "lookahead"]
    assert names(NoSpeculation()) == free
    assert names(Medusa("medusa", "h")) == [*free, "medusa", "hybrid"]
    assert names(DraftModel("draft_model", DraftOptions("d"))) == [*free, "draft_model", "hybrid"]
    assert names(ReDrafter("redrafter", "d")) == [*free, "redrafter", "hybrid"]
    beside = Hybrid("hybrid", redrafter=DrafterOptions("d"))
    assert names(beside) == [*free, "redrafter", "hybrid"]


class Counting:
    """A runner that notes how many rows each step evaluates: what is pending, and the draft."""

    def __init__(self) -> None:
        self.pending, self.rows = 0, []  # type: ignore[var-annotated]

    def start(self, prompt) -> None:
        self.pending = len(prompt)

    def score(self, draft) -> Scores:
        self.rows.append(self.pending + len(draft))
        return Scores(np.zeros((1 + len(draft), 2), np.float32))

    def commit(self, draft, verdict) -> None:
        self.pending = 1


def test_timed_steps_read_the_prefix_once_and_then_only_their_rows() -> None:
    runner = Counting()
    measure_cost(runner, PROMPT, 3)  # type: ignore[arg-type]
    first, *rest = runner.rows
    assert first == len(PROMPT)
    assert set(rest) == {1, 2, 3}
    assert all(rest.count(rows) == rest.count(1) for rows in (2, 3))


def test_every_tree_that_is_tried_has_its_size() -> None:
    accuracy = [[0.5, 0.2, 0.1], [0.4, 0.1, 0.1]]
    for options in candidates(Medusa("medusa", "h"), accuracy):
        assert isinstance(options, Medusa)
        if not isinstance(options.tree, str):
            assert len(options.tree) == options.num_draft_tokens


@pytest.mark.parametrize(
    "options",
    [
        NoSpeculation(),
        PromptLookup("prompt_lookup", 4),
        DraftModel("draft_model", DraftOptions("d", num_draft_tokens=2), 3),
        Hybrid("hybrid", DraftOptions("d"), draft_length="confidence", min_confidence=0.7),
        Hybrid("hybrid", heads="h", tree="dynamic"),
        Hybrid("hybrid", redrafter=DrafterOptions("h", 2, 4)),
        ReDrafter("redrafter", "h", 3, 3),
        Lookahead("lookahead"),
    ],
    ids=lambda options: options.method,
)
def test_tuned_settings_are_read_back_as_they_are(options: Speculation, tmp_path: Path) -> None:
    """The config reader refuses keys without effect, so none is written."""
    text = "name: a\nengine: {backend: openvino}\ntarget: {model: m}\n"
    path = tmp_path / "run.yaml"
    path.write_text(replace_speculation(text, options, ["tuned"]))
    assert read_config(path).speculation == options


def test_settings_that_are_tuned_are_shown_those_of_a_drafter_too() -> None:
    shown = settings_text(Hybrid("hybrid", None, 6, redrafter=DrafterOptions("h", 2, 4)))
    assert shown.startswith("hybrid num_draft_tokens=6 ")
    assert shown.endswith(" num_beams=2 draft_len_per_beam=4") and "tree" not in shown


def test_the_choice_replaces_one_section_and_leaves_the_rest(tmp_path: Path) -> None:
    text = (
        "# mine\nname: a\nspeculation:\n  method: none  # for now\n\nengine: {backend: openvino}\n"
    )
    options = Medusa("medusa", "h", 2, ((0,), (0, 1)))
    changed = replace_speculation(text + "target: {model: m}\n", options, ["tuned"])
    assert changed.startswith('# mine\nname: a\n# tuned\nspeculation:\n  method: "medusa"\n')
    path = tmp_path / "run.yaml"
    path.write_text(changed)
    assert read_config(path).speculation == options


def test_a_run_is_tuned_from_its_config(write_config, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    words = ("quick brown fox", "lazy dog jumps", "five dozen jugs", "vexingly daft zebras")
    prompts.write_text("".join(json.dumps({"prompt": f"{w} {w} {w}"}) + "\n" for w in words))
    config = read_config(
        write_config(
            speculation={"method": "prompt_lookup", "num_draft_tokens": 4},
            validate={"prompts": str(prompts), "num_prompts": 4, "max_tokens": 40},
        )
    )
    tuning = tune_run(config, Workspace(tmp_path, config.name), Prices())
    speedups = [p.speedup for p in tuning.tried]
    assert len(tuning.tried) > 20 and speedups == sorted(speedups, reverse=True)
    assert tuning.best in [NoSpeculation(), tuning.tried[0].options]
    assert tuning.measured_speedup and tuning.measured_speedup > 0
    dear = tmp_path / "dear.json"
    dear.write_text(json.dumps({"step_ms": {"1": 1.0, "2": 100.0}}))
    found = recommend_run(config, Workspace(tmp_path, config.name), Prices(dear))
    assert found[0].options == NoSpeculation() and found[0].speedup == pytest.approx(1, rel=0.01)
    assert {p.options.method for p in found} == {"none", "prompt_lookup", "lookahead"}


def test_a_run_for_a_gpu_is_tuned_with_the_cpu_engine_and_the_gpus_prices(
    write_config, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"fox {n} fox {n}"}) + "\n" for n in (1, 2)))
    validate = {"prompts": str(prompts), "num_prompts": 2, "max_tokens": 20}
    config = read_config(write_config(validate=validate))
    workspace, said = Workspace(tmp_path, config.name), []
    found = recommend_run(config, workspace, Prices(gpu="L4"), notify=said.append)
    assert {p.options.method for p in found} == {"none", "lookahead"}
    assert any("left out: prompt_lookup" in line for line in said)
    assert any("estimate" in line for line in said)
    assert found[0].ms_a_token < 1  # a tiny model on a GPU
    with pytest.raises(Unsupported, match="which is not known"):
        recommend_run(config, workspace, Prices(gpu="H1000"))


def test_the_run_on_this_machine_keeps_its_lengths_and_takes_a_name_of_its_own(
    write_config,
) -> None:
    config = read_config(write_config())
    assert on_this_machine(config) is config
    gpu = replace(config, engine=replace(config.engine, backend="tensorrt", gpu="L4"))
    here = on_this_machine(gpu)
    assert here.name == f"{config.name}.cpu" and here.engine.backend == "openvino"
    assert here.engine.max_seq_len == config.engine.max_seq_len
