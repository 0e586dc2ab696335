"""Tuning: a replay takes the very steps of serving, prices add up, the choice goes back as YAML."""

import gc
import json
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from specpipe.cli.present import settings_text
from specpipe.config.method_parts import (
    DraftOptions,
    Eagle3Draft,
    Eagle3Options,
    ReDrafterOptions,
)
from specpipe.config.run_config import read_config
from specpipe.config.speculation import (
    PLAIN,
    DraftModel,
    Eagle3,
    Hybrid,
    Lookahead,
    Medusa,
    NoSpeculation,
    PromptLookup,
    ReDrafter,
    Speculation,
    eagle3_of,
)
from specpipe.core.artifacts import Workspace
from specpipe.core.contracts import Asking, Draft, Floats, Guesses
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.core.trees import complete_tree
from specpipe.run.run import Run
from specpipe.runtime.assembly import Runtime
from specpipe.runtime.budget import Budget
from specpipe.speculate.prompt_lookup import PromptLookupProposer
from specpipe.tune.candidates import candidates, possible_methods
from specpipe.tune.cost import CostCurve, Costs, measure_costs, read_costs, rising
from specpipe.tune.growth import BEAMS, LEVELS
from specpipe.tune.race import PASSES, Arms, measure, serve_one
from specpipe.tune.replay import PricedBudget, ReplayedRound, ReplayedStep, priced
from specpipe.tune.replay import replay as replay_all
from specpipe.tune.result import Prediction
from specpipe.tune.rounds import Size, scripted_draft
from specpipe.tune.settings import replace_speculation
from specpipe.tune.stage import Prices, on_this_machine, recommend_run, tune_run
from specpipe.tune.trace import DrafterKind, Trace, head_accuracy, record
from specpipe.tune.tune import Observed, price, tune
from tests.helpers.scripted_engine import ScriptedEngine
from tests.helpers.scripted_model import random_distribution

PROMPT = [5, 9, 10, 11, 2, 9, 10, 11, 5, 9]
COST = CostCurve((1, 4, 8), (10.0, 10.0, 14.0))
FREE, STEEP = Costs(CostCurve((1, 64), (10.0, 10.001))), Costs(CostCurve((1, 64), (10.0, 200.0)))
VOCABULARY = 12


def new_deployment() -> Runtime:
    """Return engines that know no prefix yet."""
    distribution, other = random_distribution(VOCABULARY, 3), random_distribution(VOCABULARY, 4)

    def near(context: Sequence[int]) -> Floats:
        return 0.6 * distribution(context) + 0.4 * other(context)

    target = ScriptedEngine(distribution, VOCABULARY, heads=near)
    return Runtime({"target": target, "draft": ScriptedEngine(near, VOCABULARY)}, PLAIN)


deployment = pytest.fixture(new_deployment, name="deployment")


def record_one(deployment: Runtime, count: int = 60, end_ids=(), drafter="heads") -> Trace:
    (found,) = record(deployment, [PROMPT], count, end_ids, drafter=drafter)
    return found


def rounds_of(
    options: Speculation, trace: Trace, deployment: Runtime, budget: PricedBudget
) -> list[ReplayedRound]:
    return replay_all(options, [trace], deployment, budget)


def replay(
    options: Speculation, trace: Trace, deployment: Runtime, budget: PricedBudget
) -> list[ReplayedStep]:
    """Return the steps of one sequence."""
    return [step for one in rounds_of(options, trace, deployment, budget) for step in one.steps]


@pytest.fixture
def trace(deployment: Runtime) -> Trace:
    return record_one(deployment)


@pytest.mark.parametrize("costs", [FREE, STEEP], ids=["wide steps are free", "rows cost"])
@pytest.mark.parametrize(
    "options",
    [
        NoSpeculation(),
        PromptLookup("prompt_lookup", 5, 1, 3),
        PromptLookup("prompt_lookup", 5, 1, 3, draft_length="fixed"),
        DraftModel("draft_model", DraftOptions(""), 3),
        Medusa("medusa", "", 4, complete_tree([(0, 0), (1,), (2,)])),
        Medusa("medusa", "", 5, "dynamic"),
    ],
    ids=lambda options: options.method,
)
def test_a_replay_takes_the_steps_of_serving(
    options: Speculation, costs: Costs, deployment: Runtime, trace: Trace
) -> None:
    """The budget cuts drafts in both, and learns in both what was accepted."""
    fresh = replace(new_deployment(), speculation=options)
    served = list(serve_one(fresh, priced(costs), PROMPT, 60))
    replayed = replay(options, trace, deployment, priced(costs))
    assert [t for step in served for t in step.tokens] == list(trace.output)
    assert [step.emitted for step in replayed] == [len(step.tokens) for step in served]
    assert [step.depth for step in replayed] == [step.drafted for step in served]
    if costs is FREE and options.num_draft_tokens:
        assert max(step.emitted for step in replayed) > 1


@pytest.mark.parametrize(
    "options",
    [
        ReDrafter("redrafter", "", 2, 3),
        Hybrid("hybrid", None, 6, 1, 3, redrafter=ReDrafterOptions("", 2, 3)),
    ],
    ids=lambda options: options.method,
)
def test_a_replay_with_a_drafter_takes_the_steps_of_serving(
    options: Speculation, deployment: Runtime
) -> None:
    recorded = record_one(deployment, drafter="redrafter")
    fresh = replace(new_deployment(), speculation=options)
    served = list(serve_one(fresh, priced(FREE), PROMPT, 60))
    replayed = replay(options, recorded, deployment, priced(FREE))
    assert [t for step in served for t in step.tokens] == list(recorded.output)
    assert [step.emitted for step in replayed] == [len(step.tokens) for step in served]
    assert [step.depth for step in replayed] == [step.drafted for step in served]
    rounds = rounds_of(options, recorded, deployment, priced(FREE))
    assert 1 <= max(one.head_calls for one in rounds) <= 3  # one a level that is worth it
    assert all(step.propose_ms >= 0 for step in replayed)


@pytest.mark.parametrize(
    "options",
    [
        Eagle3("eagle3", Eagle3Draft(""), 4),
        Eagle3("eagle3", Eagle3Draft(""), 6, "dynamic", 2, 3),
        Eagle3("eagle3", Eagle3Draft(""), 12, "dynamic", 4, 5),
    ],
    ids=lambda options: f"{options.tree} {options.num_draft_tokens}",
)
@pytest.mark.parametrize("costs", [FREE, STEEP], ids=["wide steps are free", "rows cost"])
def test_a_replay_with_a_layer_that_drafts_takes_the_steps_of_serving(
    options: Eagle3, costs: Costs, deployment: Runtime
) -> None:
    """Its predictions are recorded with the hidden states; a smaller tree is part of the record."""
    noted = record_one(deployment, drafter="eagle3")
    served = list(
        serve_one(replace(new_deployment(), speculation=options), priced(costs), PROMPT, 60)
    )
    replayed = replay(options, noted, deployment, priced(costs))
    assert [t for step in served for t in step.tokens] == list(noted.output)
    assert [step.emitted for step in replayed] == [len(step.tokens) for step in served]
    assert [step.depth for step in replayed] == [step.drafted for step in served]
    rounds = rounds_of(options, noted, deployment, priced(FREE))
    assert max(one.head_calls for one in rounds) > 1


def test_a_hybrid_with_a_layer_that_drafts_is_replayed(deployment: Runtime) -> None:
    """Nodes of prompt lookup have no record, so it emits no more than it does when it is served."""
    options = Hybrid("hybrid", None, 6, 1, 3, eagle3=Eagle3Options("", 2, 3))
    noted = record_one(deployment, drafter="eagle3")
    served = list(
        serve_one(replace(new_deployment(), speculation=options), priced(FREE), PROMPT, 60)
    )
    replayed = replay(options, noted, deployment, priced(FREE))
    assert sum(step.emitted for step in replayed) == len(noted.output)
    assert len(served) <= len(replayed) < len(noted.output)


def test_a_proposer_is_charged_what_it_computes_not_what_it_waits_for(
    deployment: Runtime, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program that needs the processor is not part of the deployment."""
    propose, other_ms = PromptLookupProposer.propose, []

    def compute() -> None:
        sum(range(1_000_000))
        other_ms.append(time.thread_time_ns() / 1e6)

    def late(self: PromptLookupProposer, limit: int) -> Asking[Draft]:
        assert not gc.isenabled()  # a collection visits all objects of the process
        other = Thread(target=compute)
        other.start()
        other.join()
        return propose(self, limit)

    monkeypatch.setattr(PromptLookupProposer, "propose", late)
    steps = replay(PromptLookup("prompt_lookup", 8), trace, deployment, priced(FREE))
    assert 0 < sum(step.propose_ms for step in steps) < sum(other_ms) / 2 and gc.isenabled()


def test_a_replay_drafts_less_where_rows_cost_more(deployment: Runtime, trace: Trace) -> None:
    options = PromptLookup("prompt_lookup", 8)
    free, steep = (
        sum(step.rows for step in replay(options, trace, deployment, priced(costs)))
        for costs in (FREE, STEEP)
    )
    assert steep < free


def test_a_replay_stops_drafting_where_the_drafters_cost_more_than_they_save(
    deployment: Runtime, trace: Trace
) -> None:
    dear = replace(FREE, draft_ms=500.0)
    options = DraftModel("draft_model", DraftOptions(""), 3)
    fixed = replace(options, draft_length="fixed")
    calls = [
        sum(one.draft_calls for one in rounds_of(settings, trace, deployment, priced(dear)))
        for settings in (options, fixed)
    ]
    assert 0 < calls[0] < calls[1] / 3


@pytest.mark.parametrize("streams", [1, 3])
def test_drafts_that_a_server_has_given_up_are_not_priced(
    streams: int, deployment: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first drafts of a server are made before it knows their price."""
    monkeypatch.setattr(time, "thread_time_ns", lambda: 0)  # what proposing takes is measured
    prompts = [[*PROMPT, token] for token in range(3)]
    traces = record(deployment, prompts, 60, (), drafter=None)
    options = DraftModel("draft_model", DraftOptions(""), 3)
    dear = replace(FREE, draft_ms=500.0)
    seen = Observed(options, deployment, (), traces, traces, dear, True, streams=streams)
    speedups = [found.speedup for found in tune(seen).tried]
    assert 0.97 < min(speedups) <= max(speedups) <= 1


def test_finalists_decode_every_prompt_several_times(deployment: Runtime) -> None:
    """An answer of one token has no time between tokens."""
    *whole, cut = record(deployment, [PROMPT, [1, 2, 3], [4, 4]], 30, (), drafter=None)
    traces = [*whole, replace(cut, output=cut.output[:1])]
    target = deployment.engines["target"]
    assert isinstance(target, ScriptedEngine)
    target.steps.clear()
    (found,) = measure(Arms(deployment, FREE, ()), traces, [Prediction(PLAIN, 1.0, 10.0, 1.0)])
    assert len(target.steps) == 2 * PASSES * (30 + 30 + 1)
    assert found.speedup.samples == found.ms_a_token.samples == 2


@pytest.mark.parametrize("length", [1, 2, 13, 60])
def test_an_answer_is_recorded_as_plain_decoding_gives_it(
    length: int, deployment: Runtime, trace: Trace
) -> None:
    """Its end lies inside what a step emits as well as at a step's end."""
    plain = [t for step in serve_one(deployment, Budget(), PROMPT, 60) for t in step.tokens]
    assert plain == list(trace.output)
    end_id = trace.output[length - 1]
    until = trace.output[: trace.output.index(end_id) + 1]
    for found, whole in (
        (record_one(deployment, 60, (10**6, end_id)), until),
        (record_one(deployment, length), trace.output[:length]),
    ):
        assert found.output == whole and len(found.guesses) == len(whole)
        for one, other in zip(found.guesses, trace.guesses, strict=False):
            assert one.tokens.tolist() == other.tokens.tolist()


def test_prompts_are_recorded_in_one_batch_as_each_alone(deployment: Runtime) -> None:
    prompts, seen = [PROMPT, [1, 2, 3], [7] * 90], []
    together = record(
        deployment, prompts, 70, (), drafter="redrafter", progress=lambda *done: seen.append(done)
    )
    target = deployment.engines["target"]
    assert isinstance(target, ScriptedEngine) and max(map(len, target.steps)) == 3
    assert seen[-1] == (3, 3) and not target.live
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = record(deployment, [prompt], 70, (), drafter="redrafter")
        assert found.output == alone.output
        assert found.draft is not None and len(found.draft) == 71  # more than one block
        assert np.array_equal(found.draft, alone.draft)
        assert np.array_equal(found.hidden, alone.hidden)


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


def test_the_price_of_rounds_has_rows_drafters_and_the_proposers_own_time() -> None:
    rounds = [
        ReplayedRound((ReplayedStep(1, 0, 1, 0.5),)),
        ReplayedRound((ReplayedStep(6, 2, 3, 0.0),), head_calls=1, draft_calls=2),
    ]
    costs = Costs(COST, heads_ms=1.0, draft_ms=3.0, handover_ms=0.25)
    assert price(costs, rounds) == 10 + 0.5 + 12 + 1 + 2 * 3 + 0.25


def test_a_round_costs_more_after_one_of_other_rows_and_with_a_tree() -> None:
    """A round that reads a prompt is free, and the next one has other rows."""
    chain, tree = ReplayedStep(4, 3, 1, 0.0), ReplayedStep(4, 2, 1, 0.0, branched=True)
    costs = Costs(COST, change_ms=3.0, tree=CostCurve((1, 8), (10.0, 17.0)))
    reads = ReplayedRound((ReplayedStep(1, 0, 1, 0.0),), reads=True)
    same, other = ReplayedRound((chain,)), ReplayedRound((tree,))
    assert price(costs, [reads, same, same, other]) == (10 + 3) + 10 + 13
    both = ReplayedRound((chain, chain))  # of two streams
    assert price(costs, [same, both]) == (10 + 3) + (14 + 3)


def test_a_budget_has_the_curve_of_tuning() -> None:
    rows = (1, 2, 6, 8, 12)
    assert [float(COST.measured()(n)) for n in rows] == [COST(n) for n in rows]
    curve = COST.measured()
    for _ in range(8):
        curve.observe(4, 40.0)
    assert float(curve(4)) > COST(4) == 10.0  # tuning's own is not changed by serving


@pytest.mark.parametrize("streams", [1, 3])
def test_the_rounds_of_a_deployment_are_timed(
    streams: int, deployment: Runtime, trace: Trace
) -> None:
    costs = measure_costs(deployment, [trace], drafter=None, streams=streams)
    target = deployment.engines["target"]
    assert isinstance(target, ScriptedEngine) and not target.live
    assert costs.step.rows[:4] == tuple(streams * rows for rows in (1, 2, 3, 4))
    assert costs.tree and costs.tree.rows[:3] == tuple(streams * rows for rows in (1, 4, 8))
    for curve in (costs.step, costs.tree):
        assert list(curve.ms) == sorted(curve.ms) and curve.ms[0] > 0
    assert costs.change_ms >= 0


def test_scripted_drafts_have_their_size_and_the_recorded_tokens() -> None:
    coming = [7, 8, 9]
    chain = scripted_draft(coming, Size(4), VOCABULARY)
    assert chain.depth == 4 and chain.tokens[:2].tolist() == [7, 8] and chain.tokens[2] != 9
    tree = scripted_draft(coming, Size(7, branched=True), VOCABULARY)
    assert len(tree) == 7 and tree.depth == 3
    assert tree.parents.tolist() == [-1, -1, 0, 0, 1, 1, 2]
    assert [tree.tokens[0], tree.tokens[2]] == [7, 8]
    assert len(scripted_draft(coming, Size(0), VOCABULARY)) == 0


@pytest.mark.parametrize(
    ("drafter", "calls"),
    [("heads", "guesses"), ("redrafter", "extensions"), ("eagle3", "predictions")],
)
def test_drafters_are_called_between_the_steps_that_are_timed(
    drafter: DrafterKind, calls: str, deployment: Runtime, trace: Trace
) -> None:
    measure_costs(deployment, [trace], drafter=drafter, beams=3)
    target, draft = deployment.engines["target"], deployment.engines["draft"]
    assert set(getattr(target, calls)) == {3 if drafter == "redrafter" else 1}  # paths, or drafts
    assert isinstance(draft, ScriptedEngine) and draft.rows.count(1) > len(draft.rows) / 2


@pytest.mark.parametrize(
    "options",
    [
        PromptLookup("prompt_lookup", 5, 1, 3),
        Medusa("medusa", "", 5, "dynamic"),
        DraftModel("draft_model", DraftOptions(""), 3),
    ],
    ids=lambda options: options.method,
)
def test_streams_that_are_replayed_together_emit_their_own_answers(
    options: Speculation, deployment: Runtime
) -> None:
    prompts = [PROMPT, [1, 2, 3], [7] * 30, [4, 4]]
    traces = record(deployment, prompts, 40, (), drafter="heads")
    rounds = replay_all(options, traces, deployment, priced(FREE), streams=2)
    assert max(len(one.steps) for one in rounds) == 2
    assert sum(one.emitted for one in rounds) == sum(len(trace.output) for trace in traces)
    alone = [replay(options, trace, deployment, priced(FREE)) for trace in traces]
    assert sum(map(len, alone)) >= len(rounds) > sum(map(len, alone)) / 2 - 3
    calls = sum(one.head_calls + one.draft_calls for one in rounds)
    assert 0 <= calls <= 3 * len(rounds)  # one call serves both streams


def test_a_replay_counts_the_calls_of_heads_and_draft(deployment: Runtime, trace: Trace) -> None:
    def steps(options: Speculation) -> list[ReplayedRound]:
        return rounds_of(options, trace, deployment, priced(FREE))

    heads = steps(Medusa("medusa", "", 4, "dynamic"))
    assert [step.head_calls for step in heads][1:-1] == [1] * (len(heads) - 2)
    draft = steps(DraftModel("draft_model", DraftOptions(""), 3, draft_length="fixed"))
    assert all(one.draft_calls == one.steps[0].depth for one in draft[1:])
    both = steps(Hybrid("hybrid", heads="", tree="dynamic"))
    assert 0 < sum(step.head_calls for step in both) <= len(both)


def test_the_costs_of_another_machine_are_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"step_ms": {"8": 15, "1": 14}, "heads_ms": 0.5}))
    costs = read_costs(file)
    assert (
        isinstance(costs, Costs)
        and costs.step(1) == 14
        and costs.step(8) == 15
        and costs.heads_ms == 0.5
    )
    older = {"step_ms": {"1": 14, "8": 15}, "heads_ms": 0.5, "pads_steps": True, "change_ms": 3}
    file.write_text(json.dumps(older))
    assert read_costs(file) == costs
    for bad in ({"step_ms": {"1": 14}}, {"step_ms": {"2": 1, "3": 2}}, {"heads_ms": 1}, [],
                {"step_ms": {"1": 14, "8": 15}, "head_ms": 1},
                {"step_ms": {"1": 14, "8": 15}, "change_ms": "1"}):  # fmt: skip
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
    beside = Hybrid("hybrid", redrafter=ReDrafterOptions("d"))
    assert names(beside) == [*free, "redrafter", "hybrid"]
    layer = Eagle3("eagle3", Eagle3Draft("d"))
    assert names(layer) == [*free, "eagle3", "hybrid"]
    assert names(Hybrid("hybrid", eagle3=Eagle3Options("d"))) == names(layer)


@pytest.mark.parametrize(
    "options",
    [
        Medusa("medusa", "h", draft_vocab_size=64, draft_length="fixed", max_concurrency=3),
        ReDrafter("redrafter", "d", draft_vocab_size=64),
        Hybrid("hybrid", redrafter=ReDrafterOptions("d"), draft_vocab_size=64, max_concurrency=3),
        DraftModel("draft_model", DraftOptions("d"), min_confidence=0.3, max_concurrency=3),
    ],
    ids=lambda options: options.method,
)
def test_methods_keep_what_does_not_belong_to_one_of_them(options: Speculation) -> None:
    """Else a drafter would be tried with all tokens where the run has it draft a few."""
    for method in possible_methods(options):
        for name in ("draft_vocab_size", "min_confidence", "draft_length", "max_concurrency"):
            if name in {f.name for f in fields(method)} & {f.name for f in fields(options)}:
                assert getattr(method, name) == getattr(options, name), (method, name)


def test_every_setting_of_a_layer_that_drafts_is_in_the_record() -> None:
    layer = Eagle3("eagle3", Eagle3Draft("d"))
    for method in possible_methods(layer)[2:]:
        for options in candidates(method, []):
            found = eagle3_of(options)
            assert found and found.num_beams <= BEAMS and found.draft_len_per_beam <= LEVELS
            if isinstance(options, Eagle3) and options.tree == "chain":
                assert options.num_draft_tokens <= LEVELS


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
        Hybrid("hybrid", DraftOptions("d"), min_confidence=0.7),
        Hybrid("hybrid", heads="h", tree="dynamic"),
        Hybrid("hybrid", redrafter=ReDrafterOptions("h", 2, 4)),
        ReDrafter("redrafter", "h", 3, 3),
        Eagle3("eagle3", Eagle3Draft("h"), 5),
        Eagle3("eagle3", Eagle3Draft("h"), 12, "dynamic", 3, 4),
        Hybrid("hybrid", eagle3=Eagle3Options("h", 2, 4)),
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
    shown = settings_text(Hybrid("hybrid", None, 6, redrafter=ReDrafterOptions("h", 2, 4)))
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


@pytest.mark.slow
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
    tuning = tune_run(Run(config, Workspace(tmp_path, config.name)), Prices())
    speedups = [p.speedup for p in tuning.tried]
    assert len(tuning.tried) > 20 and speedups == sorted(speedups, reverse=True)
    assert tuning.best in [NoSpeculation(), *(found.options for found in tuning.measured)]
    assert len({found.options.num_draft_tokens for found in tuning.measured}) == 3
    dear = tmp_path / "dear.json"
    dear.write_text(json.dumps({"step_ms": {"1": 1.0, "2": 100.0}}))
    found = recommend_run(Run(config, Workspace(tmp_path, config.name)), Prices(dear))
    best = found.found[0]
    assert best.options == NoSpeculation() and best.speedup == pytest.approx(1, rel=0.01)
    assert {p.options.method for p in found.found} == {"none", "prompt_lookup", "lookahead"}


def test_a_run_for_a_gpu_is_tuned_with_the_cpu_engine_and_the_gpus_prices(
    write_config, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"fox {n} fox {n}"}) + "\n" for n in (1, 2)))
    validate = {"prompts": str(prompts), "num_prompts": 2, "max_tokens": 20}
    config = read_config(write_config(validate=validate))
    workspace, said = Workspace(tmp_path, config.name), []
    found = recommend_run(Run(config, workspace), Prices(gpu="L4"), notify=said.append)
    assert {p.options.method for p in found.found} == {"none", "lookahead"}
    assert any("left out: prompt_lookup" in line for line in said)
    assert any("estimate" in line for line in said)
    assert found.found[0].ms_a_token < 1  # a tiny model on a GPU
    with pytest.raises(Unsupported, match="which is not known"):
        recommend_run(Run(config, workspace), Prices(gpu="H1000"))
    sheets = Path("model_configs/cost_models/nvidia-gpus.json")
    said.clear()
    same = recommend_run(Run(config, workspace), Prices(sheets, "L4"), notify=said.append)
    (plain,), (other,) = ([p for p in one.found if p.options == PLAIN] for one in (same, found))
    assert plain.ms_a_token == pytest.approx(other.ms_a_token, rel=0.2)
    assert any("estimate" in line for line in said)
    with pytest.raises(ConfigError, match="figures of several GPUs, and the run names none"):
        recommend_run(Run(config, workspace), Prices(sheets))


def test_the_run_on_this_machine_keeps_its_lengths_and_takes_a_name_of_its_own(
    write_config,
) -> None:
    config = read_config(write_config())
    assert on_this_machine(config) is config
    gpu = replace(config, engine=replace(config.engine, backend="tensorrt", gpu="L4"))
    here = on_this_machine(gpu)
    assert here.name == f"{config.name}.cpu" and here.engine.backend == "openvino"
    assert here.engine.max_seq_len == config.engine.max_seq_len
