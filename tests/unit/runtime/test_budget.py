"""Which draft nodes are scored: those that pay at the present load and acceptance."""

from itertools import pairwise

import numpy as np
import pytest

from specpipe.core.contracts import ROOT, Draft, chain
from specpipe.runtime.acceptance import Shadow
from specpipe.runtime.budget import HOLD, IDLE_HOLD, TRIAL_NODES, TRY_AFTER, Budget
from specpipe.runtime.cost import DraftingCost, StepCost, measure_steps
from specpipe.runtime.forecast import MOST_DRAFTED, MOST_PATIENCE, PATIENCE, Forecast
from specpipe.speculate.decode import Step
from tests.helpers.toy_engine import ToyEngine

FREE_ROWS = StepCost(np.array([1.0, 64]), np.array([10.0, 10.0001]))
DEAR_ROWS = StepCost(np.array([1.0, 64]), np.array([10.0, 640]))  # 64 rows cost 64 steps of one
KNEE = StepCost(np.array([1.0, 8, 64]), np.array([10.0, 10.5, 80]))  # flat up to 8 rows


def step(drafted: int, accepted: int) -> Step:
    return Step(tuple(range(accepted + 1)), drafted, accepted)


def after(budget: Budget, *steps: Step) -> Forecast:
    """Return the forecast of a stream that took these steps."""
    forecast = budget.forecast(True, None)
    for taken in steps:
        budget.learn(forecast, taken)
    return forecast


def kept(budget: Budget, draft: Draft, forecast: Forecast, streams: int = 1, room: int = 64) -> int:
    (nodes,) = budget.choose([draft], [forecast], streams=streams, roots=streams, room=room)
    return len(draft) if nodes is None else len(nodes)


def allowed(budget: Budget, forecast: Forecast, limit: int = 4, running: int = 1) -> int:
    """Return how deep a stream may draft while others do not; the depth is chosen now."""
    budget.begin([], 0)
    budget.begin([forecast], running)
    return budget.allow(forecast, limit)


def allow_all(budget: Budget, forecasts: list[Forecast]) -> list[int]:
    """Return how deep each stream may draft; all of them run."""
    for forecast in forecasts:
        forecast.limit = 4
    budget.begin(forecasts, len(forecasts))
    return [budget.allow(forecast, 4) for forecast in forecasts]


GOOD, BAD = [step(4, 4)] * 30, [step(4, 0)] * 30


def test_free_rows_are_all_used_and_dear_rows_are_not() -> None:
    for history in ([], GOOD, BAD[:3]):
        budget = Budget(FREE_ROWS)
        assert kept(budget, chain([1, 2, 3, 4]), after(budget, *history)) == 4
    budget = Budget(DEAR_ROWS)
    assert kept(budget, chain([1, 2, 3, 4]), after(budget, *BAD)) == 0


def test_drafts_grow_with_acceptance() -> None:
    lengths = [
        kept(budget, chain(range(8)), after(budget, *[step(8, hits)] * 30))
        for hits in (0, 2, 8)
        if (budget := Budget(StepCost(np.array([1.0, 64]), np.array([10.0, 200]))))
    ]
    assert lengths == sorted(lengths) and lengths[0] < 3 and lengths[-1] == 8


def test_drafts_shrink_with_load() -> None:
    budget = Budget(KNEE)
    forecast = after(budget, *[step(4, 2)] * 30)
    lengths = [kept(budget, chain([1, 2, 3, 4]), forecast, streams) for streams in (1, 4, 7, 30)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] >= 2 and lengths[-1] <= 1


def test_the_likeliest_nodes_of_all_streams_are_scored_first() -> None:
    budget = Budget(KNEE)
    sure, unsure = after(budget, *GOOD), after(budget, *BAD)
    drafts = [chain([1, 2, 3, 4]), chain([1, 2, 3, 4])]
    nodes = budget.choose(drafts, [unsure, sure], streams=2, roots=2, room=4)
    assert nodes[1] is None and nodes[0] is not None and len(nodes[0]) == 0


def test_a_nodes_parent_is_always_scored_with_it() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        count = int(rng.integers(1, 12))
        parents = np.array([rng.integers(-1, node) for node in range(count)])
        chances = np.ones(count)
        for node, parent in enumerate(parents):
            chances[node] = (chances[parent] if parent >= 0 else 1.0) * rng.random()
        draft = Draft(np.arange(count), parents, chances=chances if rng.random() < 0.7 else None)
        budget = Budget(StepCost(np.array([1.0, 64]), np.array([10.0, rng.uniform(10, 300)])))
        (nodes,) = budget.choose(
            [draft],
            [budget.forecast(True, None)],
            streams=1,
            roots=1,
            room=int(rng.integers(0, 12)),
        )
        for node in [] if nodes is None else nodes.tolist():
            assert parents[node] == ROOT or parents[node] in nodes


def test_a_window_of_scratch_nodes_is_scored_whole_or_not_at_all() -> None:
    draft = Draft(np.arange(6), np.array([ROOT, 0, ROOT, 2, 3, 4]), scratch=4)
    budget = Budget(DEAR_ROWS)
    assert kept(budget, draft, after(budget, *BAD)) == 0
    assert kept(budget, draft, budget.forecast(False, None)) == 6
    assert kept(budget, draft, budget.forecast(False, None), room=5) == 0


def test_fixed_drafts_are_scored_whole_at_any_price() -> None:
    budget = Budget(DEAR_ROWS)
    assert kept(budget, chain([1, 2, 3]), budget.forecast(False, None), streams=8) == 3


def test_a_drafter_that_overrates_itself_is_corrected() -> None:
    draft = Draft(np.arange(4), np.arange(-1, 3), chances=np.full(4, 0.9))
    budget = Budget(StepCost(np.array([1.0, 64]), np.array([10.0, 200])))
    forecast = budget.forecast(True, None)
    first = kept(budget, draft, forecast)
    for _ in range(40):
        budget.choose([draft], [forecast], streams=1, roots=1, room=64)
        budget.learn(forecast, step(4, 0))
    assert first == 4 and kept(budget, draft, forecast) < 4


def test_where_drafting_does_not_pay_a_draft_is_made_now_and_then() -> None:
    budget = Budget(DEAR_ROWS)
    forecast = after(budget, *BAD)
    depths = [allowed(budget, forecast, running=4) for _ in range(TRY_AFTER + 1)]
    assert depths == [0] * TRY_AFTER + [4]
    assert kept(budget, chain([1, 2, 3, 4]), forecast, streams=4) == 0
    assert allowed(budget, forecast, running=4) == 0


def test_a_draft_that_is_not_scored_is_compared_with_what_is_emitted() -> None:
    budget = Budget(StepCost(np.array([1.0, 64]), np.array([10.0, 100])))
    forecast = after(budget, *BAD)
    emitted = iter(range(1000))
    for count in range(40):
        draft = chain([count, count + 1, count + 2])  # right
        if kept(budget, draft, forecast):
            break
        budget.learn(forecast, Step((next(emitted),), 0, 0))
    assert 3 < count < 39 and forecast.own.by_depth[1] > 0.6


def test_a_shadow_follows_the_branch_that_is_emitted() -> None:
    tree = Draft(np.array([1, 2, 3, 4]), np.array([ROOT, ROOT, 1, 2]))
    right, wrong, short = (Shadow(tree, None) for _ in range(3))
    assert [right.follow([2]), right.follow([3]), right.follow([4])] == [False, False, True]
    assert wrong.follow([2, 9]) and not short.follow([])
    assert (right.accepted, wrong.accepted, short.accepted) == (3, 1, 0)


def test_a_drawn_draft_is_tried_by_scoring_it() -> None:
    budget = Budget(DEAR_ROWS)
    forecast = after(budget, *BAD)
    drawn = chain([1, 2, 3, 4], np.full((4, 8), 1 / 8))
    while not allowed(budget, forecast):
        pass
    assert kept(budget, drawn, forecast) == TRIAL_NODES and forecast.shadow is None


def test_trials_of_a_dear_drafter_take_little_time() -> None:
    budget = Budget(DEAR_ROWS)
    budget.note_drafting(depth=4, calls=1, ms=50.0)
    forecasts, trials = [after(budget, *BAD) for _ in range(4)], 0
    for _ in range(5000):
        budget.begin(forecasts, running=4)
        for forecast in forecasts:
            if budget.allow(forecast, 4):
                trials += 1
                kept(budget, chain([1, 2, 3, 4]), forecast)
        budget.note_step(4, 10.0)
    assert 9 <= trials <= 12  # of all streams: 50 ms in every 500 steps of 10 ms


def test_rounds_that_are_slower_than_predicted_end_drafting_until_it_is_tried_again() -> None:
    budget = Budget(StepCost(np.array([1.0, 64]), np.array([10.0, 10.0001])))
    budget.trials_ms = -1e9  # no trials
    forecasts = [after(budget, *[step(4, 0), step(4, 1)] * 15) for _ in range(4)]
    drafted = list[bool]()
    for _ in range(2000):
        drafted.append(any(allow_all(budget, forecasts)))
        budget.note_round(*((6, 16.0) if drafted[-1] else (4, 10.0)))
    assert all(drafted[:4]) and 0.02 < np.mean(drafted) < 0.15
    for _ in range(3000):
        drafted.append(any(allow_all(budget, forecasts)))
        budget.note_round(*((6, 10.0) if drafted[-1] else (4, 10.0)))
    assert all(drafted[-100:])


def test_drafts_that_disappoint_again_and_again_are_tried_less_often() -> None:
    """A tenth of the rounds with drafts that are a fifth slower would cost two hundredths."""
    budget = Budget(StepCost(np.array([1.0, 64]), np.array([10.0, 10.0001])))
    budget.trials_ms = -1e9  # no trials
    forecasts = [after(budget, *[step(4, 0), step(4, 1)] * 15) for _ in range(4)]

    def drafted(rounds: int, ms: float) -> float:
        found = list[bool]()
        for _ in range(rounds):
            found.append(any(allow_all(budget, forecasts)))
            budget.note_round(*((6, ms) if found[-1] else (4, 10.0)))
        return float(np.mean(found))

    first, later = drafted(3000, 16.0), drafted(40_000, 16.0)
    assert 0 < later < 1.1 / (1 + MOST_PATIENCE) < first
    assert drafted(5000, 10.0) > 0.2 and drafted(1000, 10.0) == 1  # they have become better
    drafted(500, 16.0)
    assert drafted(PATIENCE * (MOST_DRAFTED + HOLD + IDLE_HOLD), 16.0) > 0


def test_what_a_plain_round_takes_more_than_its_step_does_not_end_drafting() -> None:
    budget = Budget(StepCost(np.array([1.0, 64]), np.array([10.0, 10.0001])))
    forecast = after(budget, *[step(4, 1)] * 30)
    for number in range(300):
        depth = allowed(budget, forecast)
        budget.note_round(2 if depth else 1, 15.0)
        assert depth or number < 100


def test_a_draft_model_that_reads_prompts_uses_up_the_time_of_trials() -> None:
    budget = Budget(DEAR_ROWS)
    forecast = after(budget, *BAD)
    budget.note_reading(50.0)
    for _ in range(2 * TRY_AFTER):
        assert allowed(budget, forecast, running=4) == 0
    budget.afford_trials(5000.0)
    assert allowed(budget, forecast, running=4) == 4
    budget.note_reading(1e9)
    assert budget.trials_ms > -1000  # so much is made up for in two minutes


def test_drafts_of_an_unknown_price_are_charged_to_trials() -> None:
    budget = Budget(DEAR_ROWS)
    forecast = after(budget, *BAD)
    while not allowed(budget, forecast, running=4):
        pass
    assert budget.trials_ms == 0
    for _ in range(2):  # the second ones have a price, which was charged before
        budget.note_drafting(depth=4, calls=4, ms=50.0)
        assert budget.trials_ms == -50


def test_a_dear_drafter_is_not_asked_where_it_cannot_pay() -> None:
    budget = Budget(FREE_ROWS)
    forecast = after(budget, *GOOD)
    assert allowed(budget, forecast) == 4
    for _ in range(100):
        budget.note_drafting(depth=4, calls=1, ms=200.0)
    assert allowed(budget, forecast) == 0


def test_a_draft_has_to_pay_for_its_drafter_and_for_all_its_rows() -> None:
    budget = Budget(StepCost(np.array([1.0, 64]), np.array([10.0, 325])))  # 5 ms a row
    forecast = after(budget, *GOOD)
    budget.note_drafting(4, 1, 15.0)  # four tokens save 40 ms, and four rows cost 20
    assert allowed(budget, forecast) == 4
    budget.drafting = DraftingCost()
    budget.note_drafting(4, 1, 25.0)
    assert allowed(budget, forecast) == 0


def test_streams_draft_together_where_one_of_them_cannot_pay_for_the_drafter() -> None:
    budget = Budget(StepCost(np.array([1.0, 64]), np.array([10.0, 10.0001])))
    forecasts = [after(budget, *GOOD) for _ in range(4)]
    budget.note_drafting(4, 1, 25.0)  # at four streams, four tokens of one save 10 ms
    for forecast in forecasts:
        forecast.limit = 4
    budget.begin(forecasts[:1], running=4)
    assert budget.allow(forecasts[0], 4) == 0
    budget.begin(forecasts, running=4)
    assert [budget.allow(forecast, 4) for forecast in forecasts] == [4] * 4


def test_a_level_that_does_not_pay_for_its_call_is_not_drafted() -> None:
    budget = Budget(FREE_ROWS)
    forecast = after(budget, *[step(4, 1)] * 60)  # the second token is hardly ever right
    assert allowed(budget, forecast) == 4  # for nothing
    for depth in (1, 2, 3, 4) * 50:
        budget.note_drafting(depth, calls=depth, ms=3.0 * depth)
    assert allowed(budget, forecast) == 1
    once = Budget(FREE_ROWS)  # as heads are called
    for depth in (1, 2, 3, 4) * 50:
        once.note_drafting(depth, calls=1, ms=3.0)
    assert allowed(once, forecast) == 4


def test_streams_do_not_begin_to_draft_for_less_than_a_change_of_width() -> None:
    cost = StepCost(np.array([1.0, 64]), np.array([10.0, 325]), change_ms=0.0)  # 5 ms a row
    budget = Budget(cost)
    forecast = after(budget, *[step(1, 1), step(1, 0), step(1, 1)] * 30)  # two of three are right
    assert allowed(budget, forecast, limit=1) == 1  # a token in 9.0 ms
    cost.change_ms, cost.last_rows = 30.0, 1
    assert allowed(budget, forecast, limit=1) == 0  # a change costs 3.8 ms in each of eight steps
    cost.last_rows = 2
    assert allowed(budget, forecast, limit=1) == 1


def test_streams_do_not_draft_because_a_prompt_was_read() -> None:
    cost = StepCost(np.array([1.0, 64]), np.array([10.0, 325]), change_ms=30.0)  # 5 ms a row
    budget = Budget(cost)
    forecast = after(budget, *[step(1, 1), step(1, 1), step(1, 0)] * 30)  # two of three are right
    budget.note_drafting(1, 1, ms=3.0)  # a token in 10.8 ms
    cost.last_rows = 2
    assert allowed(budget, forecast, limit=1) == 1  # the step before was as wide
    cost.observe(128, 640.0, reads=True)
    assert allowed(budget, forecast, limit=1) == 0  # both widths are a change


def test_a_stream_that_drafts_nothing_does_not_count() -> None:
    budget = Budget(FREE_ROWS)
    drafting, plain = after(budget, *GOOD), after(budget, *GOOD)
    budget.note_drafting(4, 1, 25.0)  # at two streams, four tokens save 20 ms
    budget.begin([drafting, plain], running=2)
    assert budget.allow(drafting, 4) == 0


def test_more_streams_than_max_concurrency_draft_nothing() -> None:
    budget = Budget(FREE_ROWS)
    forecast = budget.forecast(False, max_concurrency=2)
    assert [allowed(budget, forecast, 4, running) for running in (1, 2, 3)] == [4, 4, 0]


def test_the_measured_cost_is_corrected_by_served_steps() -> None:
    cost = StepCost(np.array([1.0, 8, 64]), np.array([10.0, 20, 100]))
    for _ in range(200):
        cost.observe(8, 40.0)
    assert float(cost(8)) == pytest.approx(40, rel=0.05)
    assert float(cost(4)) > 20


def test_a_row_keeps_its_price_when_steps_of_many_sequences_take_longer() -> None:
    cost = StepCost(np.array([1.0, 8, 16]), np.array([12.0, 34, 48]))
    for _ in range(300):
        cost.observe(8, 43.0)
    assert float(cost(8)) == pytest.approx(43, rel=0.05)
    assert float(cost(12) - cost(8)) > 4 * (48 - 34) / 8 * 0.95


def test_all_widths_become_dearer_by_about_the_same_factor() -> None:
    """Longer contexts and a slower machine make draft rows dearer, too."""
    cost = StepCost(np.array([1.0, 8.0, 16.0]), np.array([10.0, 16.0, 24.0]), last_rows=8)
    for _ in range(100):
        cost.observe(8, 20.8)
    np.testing.assert_allclose(cost(np.array([1, 8, 16])), [13.0, 20.8, 31.2], rtol=0.04)


def test_a_width_keeps_the_proportion_that_was_seen() -> None:
    """Two widths take turns on a machine that becomes slower; then only one of them is seen."""
    cost = StepCost(np.array([1.0, 4, 8, 16]), np.array([10.0, 11, 12, 16]), last_rows=4)
    for slower in (1.0, 1.3, 0.9, 1.2) * 5:
        for rows, ms in ((4, 12.0), (8, 16.0)):
            for _ in range(10):
                cost.observe(rows, slower * ms)
    for _ in range(100):
        cost.observe(4, 18.0)
    assert float(cost(4)) == pytest.approx(18, rel=0.01)
    assert float(cost(8) / cost(4)) == pytest.approx(16 / 12, rel=0.05)


def test_a_price_is_not_carried_away_by_streams_that_end() -> None:
    """Steps of three, two and one sequences take longer than those measured with one."""
    rng = np.random.default_rng(0)
    cost = StepCost(np.array([1.0, 2, 4, 8]), np.array([9.0, 9.2, 9.9, 11.8]), last_rows=4)
    served = {4: 12.0, 3: 11.5, 2: 11.0, 1: 10.0}
    for _ in range(20):
        for rows, ms in served.items():
            for _ in range(40 if rows == 4 else 15):
                late = 1.5 if rng.random() < 0.05 else 1.0  # other work on the machine
                cost.observe(rows, ms * late * float(rng.lognormal(0, 0.08)))
        assert 12.0 < float(cost(8)) < 17.0


def test_a_step_that_reads_a_prompt_does_not_change_the_prices() -> None:
    cost = StepCost(np.array([1.0, 8.0]), np.array([10.0, 17.0]), last_rows=8)
    cost.observe(8, 40.0, reads=True)
    assert float(cost(8)) == 17 and cost.change_ms == 0
    cost.observe(128, 200.0, reads=True)
    assert float(cost(8)) == 17 and cost.change_ms == 0


def test_steps_with_drafts_keep_no_old_price_of_steps_without() -> None:
    """Once everything takes half the time, rows are as dear as at start in proportion."""
    cost = StepCost(np.array([1.0, 8.0, 16.0]), np.array([10.0, 16.0, 24.0]), last_rows=8)
    for rows, ms in [(8, 32.0)] * 100 + [(16, 48.0)] * 100 + [(16, 24.0)] * 200:
        cost.observe(rows, ms)
    assert float(cost(16)) == pytest.approx(24, rel=0.02)
    assert float(cost(8)) == pytest.approx(16, rel=0.05)


def test_the_first_drafts_of_a_drafter_are_slow() -> None:
    known = DraftingCost()
    for ms in (9.0, *[3.0] * 19):
        known.observe(1, 1, ms)
    assert known.call_ms == pytest.approx(3, rel=0.1)


def test_one_interrupted_step_changes_little() -> None:
    cost = StepCost(np.array([1.0, 8.0]), np.array([10.0, 16.0]), last_rows=8)
    for _ in range(20):
        cost.observe(8, 16.0)
    cost.observe(8, 1000.0)
    assert float(cost(8)) < 17


def test_the_price_of_a_change_of_width_follows_what_is_seen() -> None:
    cost = StepCost(np.array([1.0, 8]), np.array([10.0, 17]), change_ms=2.0, last_rows=4)
    for rows in (3, 4) * 100:
        cost.observe(rows, float(9 + rows) + 8.0)
    assert cost.change_ms == pytest.approx(8, rel=0.15)
    assert float(cost(3)) == pytest.approx(12)  # a step of the same width was not seen


def test_a_change_of_width_that_seemed_free_at_start_gets_a_price() -> None:
    cost = StepCost(np.array([1.0, 8]), np.array([10.0, 17]), change_ms=0.0, last_rows=4)
    for rows in (3, 4) * 50:
        cost.observe(rows, float(9 + rows) + 4.0)
    assert cost.change_ms == pytest.approx(4, rel=0.15)


def test_a_width_beyond_the_measured_ones_does_not_price_a_change() -> None:
    cost = StepCost(np.array([1.0, 8]), np.array([10.0, 17]), change_ms=2.0, last_rows=4)
    for rows in (16, 24) * 20:
        cost.observe(rows, 500.0)
    assert cost.change_ms == 2


def test_a_width_is_kept_until_that_has_cost_as_much_as_a_change() -> None:
    cost = StepCost(np.array([1.0, 8]), np.array([10.0, 17]), change_ms=6.0, last_rows=1)
    budget = Budget(cost)
    forecast = after(budget, *[step(4, 2)] * 30)
    lengths = [kept(budget, chain([1, 2, 3, 4]), forecast) for _ in range(4)]
    assert lengths == [2] * 4  # a step of three tokens gains 18 ms, more than two changes cost
    budget.cost.change_ms = 20.0
    assert [kept(budget, chain([1, 2, 3, 4]), forecast) for _ in range(4)] == [0, 0, 2, 0]


def test_drafts_of_varying_lengths_do_not_change_the_width() -> None:
    """Each round has another best width, and few of them are worth a change."""
    cost = StepCost(np.array([1.0, 16]), np.array([10.0, 17.5]), change_ms=6.0, last_rows=8)
    budget, widths = Budget(cost), [8]
    forecasts = [after(budget, *[step(3, 3)] * 30) for _ in range(4)]
    rng = np.random.default_rng(0)
    for _ in range(200):
        drafts = [chain(range(int(n))) for n in rng.integers(0, 3, 4)]
        budget.choose(drafts, forecasts, streams=4, roots=4, room=64)
        budget.cost.last_rows = budget.width
        widths.append(budget.width)
    changes = sum(a != b for a, b in pairwise(widths))
    assert changes < 10


def test_a_width_that_would_have_been_better_for_long_is_taken() -> None:
    cost = StepCost(np.array([1.0, 16]), np.array([10.0, 17.5]), change_ms=20.0, last_rows=6)
    budget, widths = Budget(cost), []
    forecasts = [after(budget, *[step(3, 3)] * 30) for _ in range(4)]
    for _ in range(8):
        budget.choose([chain([1, 2])] * 4, forecasts, streams=4, roots=4, room=64)
        budget.cost.last_rows = budget.width
        widths.append(budget.width)
    assert widths[0] == 6 and widths[-1] == 12 and set(widths) == {6, 12}


def test_a_draft_is_longer_where_the_wider_step_is_taken_anyway() -> None:
    cost = StepCost(np.array([1.0, 8]), np.array([10.0, 24]), change_ms=6.0, last_rows=4)
    budget = Budget(cost)
    forecast = after(budget, *[step(4, 2)] * 30)
    assert kept(budget, chain([1, 2, 3, 4]), forecast) == 3 and budget.width == 4
    assert kept(budget, chain([1]), forecast) == 1 and budget.width == 4  # padded by two rows


def test_every_further_sequence_with_a_draft_has_its_price() -> None:
    cost = StepCost(np.array([1.0, 64]), np.array([10.0, 10.0001]), draft_ms=3.0)
    budget = Budget(cost)
    good, bad = after(budget, *GOOD), after(budget, *[step(4, 0), step(4, 1)] * 15)
    drafts = [chain([1, 2, 3, 4]), chain([1, 2, 3, 4])]
    nodes = budget.choose(drafts, [good, bad], streams=2, roots=2, room=16)
    assert nodes[0] is None and nodes[1] is not None and len(nodes[1]) == 0  # half a token for 3 ms
    cost.observe(8, 13.0, drafts=2)
    assert float(cost(8)) == pytest.approx(10, abs=0.1)


def test_without_streams_there_is_no_width() -> None:
    budget = Budget(KNEE)
    budget.choose([], [], streams=0, roots=0, room=8)
    assert budget.width == 0


def test_a_change_of_width_is_part_of_the_expected_time() -> None:
    cost = StepCost(np.array([1.0, 8]), np.array([10.0, 17]), change_ms=6.0, last_rows=3)
    assert cost.next(np.array([2, 3, 4])).round(1).tolist() == [17.0, 12.0, 19.0]


def test_beyond_the_last_measured_width_the_slope_continues() -> None:
    cost = StepCost(np.array([1.0, 8]), np.array([10.0, 17]))
    assert float(cost(18)) == pytest.approx(27)
    np.testing.assert_allclose(cost(np.array([1, 8])), [10, 17])


def test_the_cost_is_measured_by_steps_that_leave_nothing_behind() -> None:
    engine = ToyEngine()
    cost = measure_steps(engine, 16)
    assert cost.rows.tolist() == [1, 2, 4, 5, 8, 16] and (np.diff(cost.ms) >= 0).all()
    assert engine.pool.used == 0


def test_the_choice_to_draft_nothing_holds_for_some_rounds() -> None:
    budget = Budget(DEAR_ROWS, trials_ms=-1e3)
    forecast = budget.forecast(True, None)
    allowed = list[int]()
    for _ in range(IDLE_HOLD + 1):
        budget.begin([forecast], 1)
        allowed.append(budget.allow(forecast, 3))
        budget.cost = FREE_ROWS
    assert allowed == [0] * IDLE_HOLD + [3]
