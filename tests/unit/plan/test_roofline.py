"""Estimated step times: bound by memory, then by arithmetic; speed-ups by the published formula."""

import dataclasses
import json

import pytest

from specpipe.core.divisibility import Parallel
from specpipe.core.drafters import RecurrentDrafter
from specpipe.core.model import Experts
from specpipe.engine.gpus import GPUS
from specpipe.engine.tensorrt.footprint import footprint
from specpipe.plan.roofline import (
    BANDWIDTH_SHARE,
    FLOPS_SHARE,
    LAUNCH_S,
    STEP_S,
    Assumed,
    Placed,
    chained_tokens,
    estimate,
    gpu_costs,
    guess_ms,
    step_ms,
)
from specpipe.tune.cost import read_costs
from tests.helpers.trtllm_build import LLAMA_8B, request

SMALL = dataclasses.replace(LLAMA_8B, num_hidden_layers=4)


def placed(gpu: str = "H100-SXM", context: int = 1024, **changes: object) -> Placed:
    asked = request(**changes)
    return Placed(GPUS[gpu], asked, footprint(asked), context)


def test_a_narrow_step_takes_the_time_of_reading_weights_and_cache() -> None:
    engine = placed()
    table = LLAMA_8B.vocab_size * LLAMA_8B.hidden_size
    read = 2 * (LLAMA_8B.num_parameters - table) + 1024 * 2 * 32 * 8 * 128 * 2
    seconds = read / (3350e9 * BANDWIDTH_SHARE) + 32 * LAUNCH_S + STEP_S
    assert step_ms(engine, 1) == pytest.approx(1000 * seconds)


def test_a_wide_step_takes_the_time_of_multiplying() -> None:
    engine, rows = placed(), 4096
    table = LLAMA_8B.vocab_size * LLAMA_8B.hidden_size
    work = 2 * (LLAMA_8B.num_parameters - table) * rows
    seconds = work / (989e12 * FLOPS_SHARE) + 32 * LAUNCH_S + STEP_S
    assert step_ms(engine, rows) == pytest.approx(1000 * seconds)


def test_fp8_weights_halve_the_reading_and_double_the_arithmetic() -> None:
    wide, narrow = placed(), placed(quantization="fp8")
    assert step_ms(narrow, 1) < 0.65 * step_ms(wide, 1)
    assert step_ms(narrow, 8192) == pytest.approx(step_ms(wide, 8192) / 2, rel=0.02)


def test_weight_only_quantisation_multiplies_in_16_bits() -> None:
    assert step_ms(placed(quantization="int4"), 8192) == pytest.approx(step_ms(placed(), 8192))


def test_steps_get_slower_with_rows_context_and_weaker_gpus() -> None:
    assert step_ms(placed(), 1) <= step_ms(placed(), 64) < step_ms(placed(), 1024)
    assert step_ms(placed(context=0), 1) < step_ms(placed(context=100_000), 1)
    times = [step_ms(placed(gpu), 1) for gpu in ("B200", "H200", "H100-SXM", "A100-80GB-SXM", "L4")]
    assert times == sorted(times)


def test_ranks_share_the_work_and_pay_for_talking_more_without_nvlink() -> None:
    assert step_ms(placed(parallel=Parallel(4)), 1) < step_ms(placed(), 1)
    with_link, without = placed(parallel=Parallel(4)), placed("L40S", parallel=Parallel(4))
    assert step_ms(without, 4096) > 5 * step_ms(with_link, 4096)


def test_pipeline_stages_follow_each_other() -> None:
    assert step_ms(placed(parallel=Parallel(1, 2)), 1) > 0.95 * step_ms(placed(), 1)


def test_a_step_of_one_token_reads_its_own_experts_and_a_wide_one_reads_all() -> None:
    model = dataclasses.replace(LLAMA_8B, moe=Experts(num_experts=8, top_k=2))
    engine = placed(model=model)
    dense = step_ms(placed(), 1)
    assert 1.4 * dense < step_ms(engine, 1) < 2.2 * dense
    assert step_ms(engine, 64) > 3 * step_ms(engine, 1)


def test_heads_and_guessing_layers_cost_what_they_read() -> None:
    model = dataclasses.replace(LLAMA_8B, num_medusa_heads=4, num_medusa_layers=1)
    heads = 4 * 2 * (4096 * 4096 + 128256 * 4096)
    found = guess_ms(placed(model=model, method="medusa", draft_nodes=63))
    assert found == pytest.approx(1000 * heads / (3350e9 * BANDWIDTH_SHARE), rel=0.01)
    two, four = (guess_ms(placed(method="eagle3", draft_nodes=n)) for n in (2, 4))
    assert four == pytest.approx(2 * two) and guess_ms(placed()) == 0


def test_a_redrafter_is_read_once_for_every_token_of_a_beam() -> None:
    net = RecurrentDrafter(2, 8192, is_rnn=True, num_beams=5, draft_len_per_beam=4)
    model = dataclasses.replace(LLAMA_8B, redrafter=net)
    found = guess_ms(placed(model=model, method="redrafter", draft_nodes=20))
    once = 2 * (2 * 8192 * 8192 + 2 * 4096 * 4096 + 128256 * 8192)
    seconds = 4 * once / (3350e9 * BANDWIDTH_SHARE) + 3 * LAUNCH_S
    assert found == pytest.approx(1000 * seconds, rel=0.001)


@pytest.mark.parametrize(("rate", "drafted", "tokens"), [(0, 5, 1), (0.5, 1, 1.5), (1, 5, 6)])
def test_tokens_of_a_chain(rate: float, drafted: int, tokens: float) -> None:
    assert chained_tokens(rate, drafted) == tokens


def test_the_speedup_is_tokens_for_the_price_of_a_step() -> None:
    target = placed(method="draft_model", draft_nodes=4)
    draft = placed(method="draft_model", role="draft", draft_nodes=4, model=SMALL)
    (case,) = (found := estimate(target, draft, 4, [Assumed("so", 3.0)])).cases
    price = (step_ms(target, 5) + 4 * step_ms(draft, 1) + found.handover_ms) / step_ms(target, 1)
    assert case.speedup == pytest.approx(3.0 / price)
    assert found.break_even_tokens == pytest.approx(price)


def test_the_break_even_batch_is_where_the_speedup_falls_below_one() -> None:
    target = placed(method="lookahead", draft_nodes=83)
    (case,) = estimate(target, None, 83, [Assumed("so", 2.0)]).cases
    assert case.pays is not None
    first, batch = case.pays
    assert first == 1 and batch < 512
    for b, pays in ((batch, True), (batch + 1, False)):
        assert (2.0 * step_ms(target, 1, b) > step_ms(target, 84, b)) == pays


def test_speculation_that_gains_nothing_never_pays() -> None:
    (case,) = estimate(placed(), placed(role="draft"), 4, [Assumed("never right", 1.0)]).cases
    assert case.speedup < 1 and case.pays is None


def test_costs_are_a_file_that_tune_reads(tmp_path) -> None:
    costs = gpu_costs(placed())
    assert list(costs.values()) == sorted(costs.values())
    file = tmp_path / "costs.json"
    file.write_text(json.dumps({"step_ms": costs, "heads_ms": 0.4, "draft_ms": 3.1}))
    assert read_costs(file).step(1) == costs[1]
