"""Sharding: all ranks together hold the whole model; what does not divide is refused."""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch

from specpipe.checkpoint.convert import Conversion
from specpipe.checkpoint.families import Shard, TensorPlan
from specpipe.checkpoint.shard import Rank, cut, local_name, ranks
from specpipe.checkpoint.source import open_source
from specpipe.core.divisibility import Parallel, check_parallel
from specpipe.core.errors import Unsupported
from specpipe.core.model import Experts, ModelConfig
from tests.helpers.models import make_heads, make_llama
from tests.helpers.sharding import merge, put, read_ranks, take

MODEL = ModelConfig(
    "LlamaForCausalLM", "float32", 32, 8, 16, 4, 2, 48, 50, 64, 1e-5, 1e4,
    moe=Experts(8, 2), moe_intermediate_size=16,
)  # fmt: skip
SHAPES = {
    Shard.REPLICATED: (5,),
    Shard.ROWS: (48, 3),
    Shard.COLUMNS: (3, 48),
    Shard.QKV: ((16 + 2 * 4) * 2, 3),
    Shard.KEYS: (4, 3),
    Shard.QKV_COLUMNS: (3, 16 + 2 * 4),
    Shard.GATED: (96, 3),
    Shard.HEAD: (50, 3),
    Shard.EMBEDDING: (50, 32),
    Shard.GATED_COLUMNS: (3, 96),
    Shard.EXPERTS: (8, 3),
    Shard.EXPERT_ROWS: (8, 16, 3),
    Shard.EXPERT_COLUMNS: (8, 3, 16),
    Shard.EXPERT_GATED: (8, 32, 3),
    Shard.EXPERT_GATED_COLUMNS: (8, 3, 32),
    Shard.EXPERT_INPUTS: (16,),
}
LAYOUTS = [
    Parallel(tp, pp, ep, embedding, dim)
    for tp, pp, ep, (embedding, dim) in product(
        (1, 2, 4, 8, 16), (1, 2), (1, 2, 8), ((False, 0), (True, 0), (True, 1))
    )
    if tp % ep == 0
]


@pytest.mark.parametrize("shard", list(Shard))
def test_the_parts_of_all_ranks_make_the_whole_tensor(shard: Shard) -> None:
    shape = SHAPES[shard]
    torch.manual_seed(0)
    tensor = torch.randn(shape)
    plan = TensorPlan("t", shape, (), (), shard, stage="every")
    for layout in LAYOUTS:
        whole, seen = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        for rank in ranks(layout):
            part = cut(plan, rank, MODEL)
            held = take(tensor, part)
            assert tuple(held.shape) == part.shape
            put(whole, seen, part, held)
        assert seen.all() and torch.equal(whole, tensor), layout


@pytest.mark.parametrize("shard", list(Shard))
def test_ranks_hold_equal_amounts(shard: Shard) -> None:
    plan = TensorPlan("t", SHAPES[shard], (), (), shard, stage="every")
    for layout in LAYOUTS:
        assert len({cut(plan, rank, MODEL).shape for rank in ranks(layout)}) == 1


def test_ranks_are_numbered_as_upstream_numbers_them() -> None:
    """The second example of upstream's Mapping: two nodes, moe_tp 2, moe_ep 4, pp 2."""
    layout = Parallel(8, 2, 4)
    by_expert_part: dict[tuple[int, int], list[int]] = {}
    by_experts: dict[tuple[int, int], list[int]] = {}
    for rank in ranks(layout):
        by_expert_part.setdefault((rank.stage, rank.expert_group), []).append(rank.index)
        by_experts.setdefault((rank.stage, rank.expert_part), []).append(rank.index)
    assert list(by_expert_part.values()) == [
        [0, 4], [1, 5], [2, 6], [3, 7], [8, 12], [9, 13], [10, 14], [11, 15],
    ]  # fmt: skip
    assert list(by_experts.values()) == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15],
    ]  # fmt: skip
    assert [rank.file for rank in ranks(Parallel(1, 2))] == [
        "rank0.safetensors", "rank1.safetensors",
    ]  # fmt: skip


def test_few_key_value_heads_are_repeated_for_neighbours() -> None:
    plan = TensorPlan("qkv", (48, 3), (), (), Shard.QKV)
    layout = Parallel(8)
    keys = [cut(plan, rank, MODEL).ranges[0][1] for rank in ranks(layout)]
    head = 2
    assert [begin for begin, _ in keys] == [32 + head * (r // 2) for r in range(8)]


def test_layers_count_from_zero_in_every_stage() -> None:
    plan = TensorPlan("transformer.layers.5.mlp.fc.weight", (2,), (), (), layer=5)
    held = [local_name(plan, rank, MODEL) for rank in ranks(Parallel(1, 4))]
    assert held == [None, None, "transformer.layers.1.mlp.fc.weight", None]


def test_stages_hold_what_their_place_asks_for() -> None:
    names = {}
    for stage in ("first", "last", "every"):
        plan = TensorPlan(stage, (2,), (), (), stage=stage)
        names[stage] = [bool(local_name(plan, Rank(Parallel(2, 2), i), MODEL)) for i in range(4)]
    assert names == {
        "first": [True, True, False, False],
        "last": [False, False, True, True],
        "every": [True] * 4,
    }


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose vocabulary no power of two divides, with 8 heads in 2 groups."""
    return make_llama(
        tmp_path_factory.mktemp("wide") / "model", seed=5, num_attention_heads=8, head_dim=8,
        num_key_value_heads=2, num_hidden_layers=4, vocab_size=325,
    )  # fmt: skip


def convert(source: Path, out: Path, parallel: Parallel, heads: Path | None = None) -> list[dict]:
    from specpipe.checkpoint.medusa import open_heads

    out.mkdir()
    found = open_heads(heads) if heads else None
    Conversion(open_source(source), "float32", found, parallel=parallel).write(
        out, lambda *at: None
    )
    files = read_ranks(out)
    assert len(files) == parallel.world_size
    return files


def layouts() -> Iterator[Parallel]:
    yield from (Parallel(2), Parallel(4), Parallel(8), Parallel(1, 2), Parallel(2, 4))
    yield from (Parallel(4, 2, 1, True, 0), Parallel(4, 1, 1, True, 1))


@pytest.mark.parametrize("parallel", list(layouts()), ids=str)
def test_a_sharded_checkpoint_holds_the_whole_model(
    parallel: Parallel, wide: Path, tmp_path: Path
) -> None:
    from specpipe.checkpoint.convert import read_model
    from specpipe.checkpoint.families import find_family

    source = open_source(wide)
    (expected,) = convert(wide, tmp_path / "one", Parallel())
    files = convert(wide, tmp_path / "many", parallel)
    model = read_model(source, "float32")
    plans = find_family(source.hf_config).tensors(model)
    merged = merge(plans, model, parallel, files)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in merged)
    assert not any(files), "tensors that no plan names"


def test_shapes_are_those_that_upstream_loads(wide: Path, tmp_path: Path) -> None:
    files = convert(wide, tmp_path / "out", Parallel(8))
    shapes = [{name: tuple(t.shape) for name, t in file.items()} for file in files]
    layer = "transformer.layers.3."
    assert all(shape == shapes[0] for shape in shapes)
    assert shapes[0][f"{layer}attention.qkv.weight"] == ((1 + 2) * 8, 64)
    assert shapes[0][f"{layer}attention.dense.weight"] == (64, 8)
    assert shapes[0][f"{layer}mlp.fc.weight"] == (16, 64)
    assert shapes[0][f"{layer}mlp.proj.weight"] == (64, 16)
    assert shapes[0]["lm_head.weight"] == (41, 64)  # 325 rows and 3 of padding, over 8 ranks
    assert shapes[0]["transformer.vocab_embedding.weight"] == (325, 64)


def test_config_json_says_how_the_model_is_spread(wide: Path, tmp_path: Path) -> None:
    convert(wide, tmp_path / "out", Parallel(4, 2, 1, True, 1))
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["mapping"] == {
        "world_size": 8, "gpus_per_node": 8, "cp_size": 1, "tp_size": 4, "pp_size": 2,
        "moe_tp_size": 4, "moe_ep_size": 1,  # their product must be tp_size, experts or not
    }  # fmt: skip
    assert config["use_parallel_embedding"] is True and config["embedding_sharding_dim"] == 1
    assert config["vocab_size"] == 325 and config["num_key_value_heads"] == 2


def test_every_stage_holds_the_heads_cut_and_padded(wide: Path, tmp_path: Path) -> None:
    """Upstream's Medusa model has its heads on every stage and refuses a file without them."""
    heads = make_heads(tmp_path / "heads", seed=2, heads=2, vocab=325)
    files = convert(wide, tmp_path / "out", Parallel(2, 2), tmp_path / "heads")
    for number, file in enumerate(files):
        rows = slice(32 * (number % 2), 32 * (number % 2) + 32)
        at = "medusa_heads.1.medusa_layers.0.linear"
        assert torch.equal(file[f"{at}.weight"], heads["1.0.linear.weight"][rows])
        assert torch.equal(file[f"{at}.bias"], heads["1.0.linear.bias"][rows])
        assert file["medusa_heads.1.lm_head.weight"].shape == (163, 64)
    assert not files[3]["medusa_heads.1.lm_head.weight"][-1].any()


@pytest.mark.parametrize(
    ("parallel", "words"),
    [
        (Parallel(3), "16 attention heads do not divide by engine.tp_size, which is 3"),
        (Parallel(1, 3), "8 layers do not divide by engine.pp_size, which is 3; .* 1, 2, 4 or 8"),
        (Parallel(4, 1, 3), "engine.moe_ep_size is 3 and does not divide engine.tp_size"),
        (Parallel(16, 1, 16), "8 experts do not divide by engine.moe_ep_size, which is 16"),
    ],
)
def test_what_does_not_divide_is_refused_with_a_sentence(parallel: Parallel, words: str) -> None:
    import re

    rejections = check_parallel(MODEL, parallel, "target")
    assert any(re.search(words, str(rejection)) for rejection in rejections)


def test_every_reason_is_named_at_once() -> None:
    from dataclasses import replace

    odd = replace(MODEL, moe=None, num_attention_heads=6, num_key_value_heads=6,
                  intermediate_size=50, num_medusa_heads=2, hidden_size=33)  # fmt: skip
    reasons = "\n".join(map(str, check_parallel(odd, Parallel(4, 3, 2, True, 1), "draft")))
    for words in ("8 layers", "6 attention heads", "inner width of 50", "Medusa heads share out",
                  "embedding_sharding_dim 1 cuts", "the draft has no experts"):  # fmt: skip
        assert words in reasons
    uneven = replace(odd, num_attention_heads=12)
    assert "6 key-value heads can neither" in str(check_parallel(uneven, Parallel(4), "draft")[0])


def test_a_conversion_that_does_not_divide_writes_nothing(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="4 layers do not divide by engine.pp_size"):
        convert(wide, tmp_path / "out", Parallel(1, 3))
    assert list((tmp_path / "out").iterdir()) == []
