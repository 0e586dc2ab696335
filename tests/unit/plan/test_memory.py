"""Memory on GPUs: what an engine takes of each, how KV caches share, what would fit."""

import dataclasses

import pytest

from specpipe.core.divisibility import Parallel
from specpipe.core.drafters import RecurrentDrafter
from specpipe.core.model import Experts
from specpipe.engine.backend import Footprint
from specpipe.engine.tensorrt.footprint import footprint, padded
from specpipe.plan.memory import KV_SHARE, RESERVE, largest, plan_memory
from tests.helpers.trtllm_build import LLAMA_8B, request

TIED = dataclasses.replace(LLAMA_8B, tie_word_embeddings=True)
NET = RecurrentDrafter(num_layers=2, exit_dim=4096, is_rnn=True, num_beams=5, draft_len_per_beam=5)
DRAFTER = dataclasses.replace(LLAMA_8B, redrafter=NET)
HEADS = dataclasses.replace(LLAMA_8B, num_medusa_heads=4, num_medusa_layers=1)
GIB = 2**30


def test_one_rank_holds_every_weight_in_16_bits() -> None:
    assert footprint(request()).weights == LLAMA_8B.num_parameters * 2


def test_a_tied_table_is_stored_once_on_one_rank_and_again_where_the_head_is_cut() -> None:
    table = TIED.vocab_size * TIED.hidden_size * 2
    one, two = footprint(request(model=TIED)), footprint(request(model=TIED, parallel=Parallel(2)))
    assert one.weights == TIED.num_parameters * 2
    layers = TIED.num_parameters * 2 - table
    assert two.weights == layers // 2 + table + table // 2


def test_ranks_share_the_layers_and_the_padded_head_but_each_has_the_embedding() -> None:
    table = LLAMA_8B.vocab_size * LLAMA_8B.hidden_size * 2
    layers = LLAMA_8B.num_parameters * 2 - 2 * table
    assert footprint(request(parallel=Parallel(4))).weights == layers // 4 + table + table // 4
    odd = dataclasses.replace(LLAMA_8B, vocab_size=32001)
    head = padded(32001, 4) // 4 * 4096 * 2
    one = 32001 * 4096 * 2
    rest = odd.num_parameters * 2 - 2 * one
    assert footprint(request(model=odd, parallel=Parallel(4))).weights == rest // 4 + one + head


def test_the_fullest_pipeline_stage_counts() -> None:
    table = LLAMA_8B.vocab_size * LLAMA_8B.hidden_size * 2
    layers = LLAMA_8B.num_parameters * 2 - 2 * table
    assert footprint(request(parallel=Parallel(1, 2))).weights == layers // 2 + table


def test_an_embedding_may_be_cut_as_well() -> None:
    table = LLAMA_8B.vocab_size * LLAMA_8B.hidden_size * 2
    whole, cut = (request(parallel=Parallel(4, use_parallel_embedding=c)) for c in (False, True))
    assert footprint(whole).weights - footprint(cut).weights == table * 3 // 4


def test_heads_are_a_residual_layer_and_an_output_layer_each_in_16_bits() -> None:
    alone = footprint(request(method="medusa", draft_nodes=63))
    whole = footprint(request(method="medusa", draft_nodes=63, model=HEADS))
    one = 4096 * 4097 + 128256 * 4096
    assert whole.weights - alone.weights == 4 * one * 2


def test_a_redrafter_is_its_matrices_with_biases_and_four_tables_of_beams() -> None:
    alone = footprint(request(method="redrafter", draft_nodes=25))
    whole = footprint(request(method="redrafter", draft_nodes=25, model=DRAFTER))
    states = 4096 * 4096 + 4096 + 4096 * 4096
    layers = 8192 * 4096 + 4096 + 2 * (4096 * 4096 + 4096)
    assert whole.weights - alone.weights == 2 * (states + layers + 128256 * 4096)
    assert whole.activations - alone.activations == 4 * (8 * 5 * 6 * 128256 * 2)
    two = [footprint(request(method="redrafter", draft_nodes=25, parallel=Parallel(2), model=model))
           for model in (LLAMA_8B, DRAFTER)]  # fmt: skip
    assert two[1].weights - two[0].weights == states + layers + 128256 * 4096


@pytest.mark.parametrize(("weights", "size"), [("fp8", 1.0), ("int4", 0.5), ("nvfp4", 0.5625)])
def test_quantisation_leaves_embedding_and_head_alone(weights: str, size: float) -> None:
    table = LLAMA_8B.vocab_size * LLAMA_8B.hidden_size
    layers = LLAMA_8B.num_parameters - 2 * table
    found = footprint(request(quantization=weights)).weights
    assert found == pytest.approx(layers * size + 2 * table * 2)


def test_the_cache_holds_every_sequence_with_its_drafts_in_whole_blocks() -> None:
    plain = footprint(request(max_batch_size=8, max_seq_len=2048))
    assert plain.kv_tokens == 8 * 2048
    assert plain.kv_per_token == 2 * 32 * 8 * 128 * 2
    drafting = footprint(request(method="lookahead", draft_nodes=83, max_seq_len=2048))
    assert drafting.kv_tokens == 8 * 2144  # 2048 + 83, in blocks of 32


def test_few_kv_heads_are_repeated_on_many_ranks() -> None:
    whole = 2 * 32 * 8 * 128 * 2
    sizes = {tp: footprint(request(parallel=Parallel(tp))).kv_per_token for tp in (1, 2, 8, 16)}
    assert sizes == {1: whole, 2: whole // 2, 8: whole // 8, 16: whole // 8}


def test_eight_bit_caches_are_half_as_large() -> None:
    assert footprint(request(kv_cache_quantization="fp8")).kv_per_token == 2 * 32 * 8 * 128


def test_work_buffers_grow_with_the_tree_and_the_batch() -> None:
    sizes = [
        footprint(request(method="medusa", draft_nodes=n, max_batch_size=b)).activations
        for n, b in ((15, 4), (63, 4), (63, 64))
    ]
    assert sizes == sorted(sizes) and sizes[2] - sizes[0] > 2 * GIB


def test_only_the_experts_of_a_token_need_work_buffers() -> None:
    many = dataclasses.replace(LLAMA_8B, moe=Experts(num_experts=8, top_k=2))
    assert footprint(request(model=many)).weights > 5 * footprint(request()).weights
    dense = footprint(request()).activations
    assert dense < footprint(request(model=many)).activations < 3 * dense


def test_engines_on_one_gpu_get_room_for_the_same_number_of_tokens() -> None:
    target = Footprint(40 * GIB, 320_000, 1000, 2 * GIB, GIB)
    draft = Footprint(10 * GIB, 500_000, 1000, GIB, GIB)
    memory = plan_memory({"target": target, "draft": draft}, 80 * GIB)
    budgets = memory.kv
    assert budgets["target"].tokens == budgets["draft"].tokens
    free = 80 * GIB * (1 - RESERVE) - target.fixed - draft.fixed
    taken = budgets["target"].tokens * (320_000 + 500_000)
    assert 0 <= KV_SHARE * free - taken < 64 * 820_000
    assert budgets["target"].tokens % 64 == 0


def test_the_token_budget_binds_whichever_engine_loads_first() -> None:
    """`kv_cache_free_gpu_mem_fraction` is of what is free when an engine has loaded."""
    parts = {"a": Footprint(40 * GIB, 320_000, 1, 0, 0), "b": Footprint(10 * GIB, 500_000, 1, 0, 0)}
    budget = plan_memory(parts, 80 * GIB).kv["a"]  # type: ignore[arg-type]
    for order in (("a", "b"), ("b", "a")):
        free = 80.0 * GIB
        for name in order:
            free -= parts[name].fixed
            cache = budget.tokens * parts[name].kv_per_token
            assert cache <= budget.fraction * free
            free -= cache


def test_what_is_too_large_has_no_room() -> None:
    memory = plan_memory({"target": Footprint(90 * GIB, 1, 1, 0, 0)}, 80 * GIB)
    assert not memory.fits and memory.kv["target"].tokens == 0


def test_a_tenth_of_what_engines_leave_is_not_for_their_caches() -> None:
    usable = 80 * GIB * (1 - RESERVE)
    for share, fits in ((0.89, True), (0.91, False)):
        cache = int((usable - 40 * GIB) * share)
        footprints = {"target": Footprint(40 * GIB, 1, cache, 0, 0)}
        assert plan_memory(footprints, 80 * GIB).fits == fits  # type: ignore[arg-type]
        assert plan_memory(footprints, 80 * GIB, on_gpu=False).fits  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [0, 1, 7, 99, 100])
def test_the_largest_that_fits_is_found(limit: int) -> None:
    assert largest(lambda n: n <= limit, 100) == limit
