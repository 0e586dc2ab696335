"""EAGLE drafters: one layer in its authors' layout, one copy per level next to its target."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from specpipe.checkpoint.convert import Conversion, read_model
from specpipe.checkpoint.eagle import EagleSource, open_eagle, planned_drafters, planned_outputs
from specpipe.checkpoint.families import find_family
from specpipe.checkpoint.inspection.describe import inspection_text
from specpipe.checkpoint.inspection.inspect import inspect_folder
from specpipe.checkpoint.source import open_source
from specpipe.config.run_config import read_config
from specpipe.config.upstream_methods import Eagle
from specpipe.core.artifacts import Workspace, read_model_config
from specpipe.core.divisibility import ONE_RANK, Parallel
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.run.run import Run
from specpipe.run.stages import build
from tests.helpers.models import make_eagle, make_heads, make_llama
from tests.helpers.sharding import merge, read_ranks

LEVELS = 2


def no_progress(done: int, total: int) -> None:
    pass


def opened(folder: Path, **options: Any) -> EagleSource:
    sizes = {"num_draft_tokens": 7, "num_eagle_layers": LEVELS, **options}
    return open_eagle(folder, Eagle("eagle", str(folder), **sizes), "float32")


def converted(
    tiny: Path, drafter: Path, out: Path, parallel: Parallel = ONE_RANK
) -> dict[str, Any]:
    """Write the checkpoint of target and drafter; return its config."""
    out.mkdir()
    source, found = open_source(tiny), opened(drafter)
    Conversion(source, "float32", found, parallel=parallel).write(out, no_progress)
    config: dict[str, Any] = json.loads((out / "config.json").read_text())
    return config


def reference_forward(source: dict[str, Any], tokens: torch.Tensor, hidden: torch.Tensor) -> Any:
    """Run the drafter of the authors' names with transformers' own layer: [T], [T, D] -> [T, D]."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, rms_norm_eps=1e-6, max_position_embeddings=128, attn_implementation="eager",
    )  # fmt: skip
    layer = LlamaDecoderLayer(config, 0)
    layer.input_layernorm = torch.nn.Identity()
    at = "layers.0."
    layer.load_state_dict({n.removeprefix(at): t for n, t in source.items() if n.startswith(at)})
    pair = torch.cat([source["embed_tokens.weight"][tokens], hidden], dim=-1)
    x = pair @ source["fc.weight"].T + source["fc.bias"]
    positions = torch.arange(len(tokens))[None]
    mask = torch.full((len(tokens), len(tokens)), float("-inf")).triu(1)[None, None]
    rotary = LlamaRotaryEmbedding(config)(x[None], positions)
    with torch.no_grad():
        out = layer(x[None], attention_mask=mask, position_embeddings=rotary)
    return (out[0] if isinstance(out, tuple) else out)[0]


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Rotate heads [H, T, d] by their positions, first half against second half."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1])[:, None] / 10000.0 ** (torch.arange(half) / half)
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def converted_forward(net: dict[str, Any], tokens: torch.Tensor, hidden: torch.Tensor) -> Any:
    """Run one `eagle_nets.N.drafter` as upstream's network does, by its names: -> [T, D]."""
    x = torch.cat([net["vocab_embedding.weight"][tokens], hidden], dim=-1)
    x = x @ net["fc.weight"].T + net["fc.bias"]
    query, key, value = (x @ net["layers.0.attention.qkv.weight"].T).split([64, 32, 32], dim=-1)
    query, key, value = (t.view(len(x), -1, 16).transpose(0, 1) for t in (query, key, value))
    key, value = (t.repeat_interleave(2, dim=0) for t in (rotated(key), value))
    scores = rotated(query) @ key.transpose(1, 2) / 4
    scores = scores + torch.full((len(x), len(x)), float("-inf")).triu(1)
    seen = (scores.softmax(-1) @ value).transpose(0, 1).reshape(len(x), -1)
    x = x + seen @ net["layers.0.attention.dense.weight"].T
    normed = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    normed = normed * net["layers.0.post_layernorm.weight"]
    gated = torch.nn.functional.silu(normed @ net["layers.0.mlp.fc.weight"].T)
    gated = gated * (normed @ net["layers.0.mlp.gate.weight"].T)
    return x + gated @ net["layers.0.mlp.proj.weight"].T


@pytest.fixture
def drafter(tmp_path: Path) -> Path:
    make_eagle(tmp_path / "drafter", seed=5)
    return tmp_path / "drafter"


def test_target_and_drafter_become_one_checkpoint(tiny: Path, tmp_path: Path) -> None:
    source = make_eagle(tmp_path / "drafter", seed=5)
    converted(tiny, tmp_path / "drafter", tmp_path / "out")
    tensors = load_file(tmp_path / "out/rank0.safetensors")
    output = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"]  # tied
    rows = [source[f"layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    same = {
        "vocab_embedding.weight": "embed_tokens.weight", "fc.weight": "fc.weight",
        "fc.bias": "fc.bias", "layers.0.attention.dense.weight": "layers.0.self_attn.o_proj.weight",
        "layers.0.mlp.fc.weight": "layers.0.mlp.gate_proj.weight",
        "layers.0.mlp.gate.weight": "layers.0.mlp.up_proj.weight",
        "layers.0.mlp.proj.weight": "layers.0.mlp.down_proj.weight",
        "layers.0.post_layernorm.weight": "layers.0.post_attention_layernorm.weight",
    }  # fmt: skip
    for level in range(LEVELS):
        at = f"eagle_nets.{level}."
        own = {n.removeprefix(at) for n in tensors if n.startswith(at)}
        names = {f"drafter.{name}" for name in [*same, "layers.0.attention.qkv.weight"]}
        assert own == {"lm_head.weight", *names}
        assert torch.equal(tensors[f"{at}lm_head.weight"], output)
        assert torch.equal(tensors[f"{at}drafter.layers.0.attention.qkv.weight"], torch.cat(rows))
        for ours, theirs in same.items():
            assert torch.equal(tensors[f"{at}drafter.{ours}"], source[theirs]), ours
    assert not any(name.startswith(f"eagle_nets.{LEVELS}.") for name in tensors)


def test_the_config_has_every_key_of_upstreams_eagle_config(
    tiny: Path, drafter: Path, tmp_path: Path
) -> None:
    config = converted(tiny, drafter, tmp_path / "out")
    expected = {
        "architecture": "EagleForCausalLM", "num_eagle_layers": LEVELS, "max_draft_len": 7,
        "max_non_leaves_per_layer": 10, "num_hidden_layers": 2, "intermediate_size": 128,
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    net = {
        "architecture": "LlamaForCausalLM", "dtype": "float32", "logits_dtype": "float32",
        "num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 64,
        "intermediate_size": 96, "num_key_value_heads": 2, "vocab_size": 320, "head_size": 16,
        "position_embedding_type": "rope_gpt_neox", "max_position_embeddings": 128,
        "hidden_act": "silu", "rotary_base": 10000.0, "rotary_scaling": None,
        "norm_epsilon": 1e-06, "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
        "use_parallel_embedding": False, "embedding_sharding_dim": 0, "mapping": config["mapping"],
    }  # fmt: skip
    assert {key: config["eagle_net_config"][key] for key in net} == net
    model = read_model_config(tmp_path / "out")
    assert model.eagle_net_config is not None and model.eagle_net_config.intermediate_size == 96


def test_a_converted_drafter_computes_what_the_authors_does(tiny: Path, tmp_path: Path) -> None:
    source = make_eagle(tmp_path / "drafter", seed=5)
    converted(tiny, tmp_path / "drafter", tmp_path / "out")
    tensors = load_file(tmp_path / "out/rank0.safetensors")
    at = "eagle_nets.1.drafter."
    net = {n.removeprefix(at): t for n, t in tensors.items() if n.startswith(at)}
    tokens, hidden = torch.tensor([3, 1, 4, 1, 5]), torch.randn(5, 64)
    expected = reference_forward(source, tokens, hidden)
    assert torch.allclose(converted_forward(net, tokens, hidden), expected, atol=1e-5)
    crossed = {**net, "layers.0.mlp.fc.weight": net["layers.0.mlp.gate.weight"]}
    assert not torch.allclose(converted_forward(crossed, tokens, hidden), expected, atol=1e-3)


@pytest.mark.parametrize(
    "parallel",
    [Parallel(2), Parallel(4), Parallel(2, 1, 1, True, 0), Parallel(2, 1, 1, True, 1)],
    ids=str,
)
def test_merged_ranks_are_target_and_drafter(
    tiny: Path, drafter: Path, tmp_path: Path, parallel: Parallel
) -> None:
    converted(tiny, drafter, tmp_path / "whole")
    converted(tiny, drafter, tmp_path / "cut", parallel)
    source, found = open_source(tiny), opened(drafter)
    model = read_model(source, "float32", found)
    plans = find_family(source.hf_config).tensors(model)
    plans += planned_outputs(plans, LEVELS) + planned_drafters(model)
    files = read_ranks(tmp_path / "cut")
    merged = merge(plans, model, parallel, files)
    (expected,) = read_ranks(tmp_path / "whole")
    assert merged.keys() == expected.keys() and not any(files)
    assert all(torch.equal(merged[name], expected[name]) for name in merged)


def test_ranks_hold_what_upstreams_layers_ask_for(tiny: Path, tmp_path: Path) -> None:
    source = make_eagle(tmp_path / "drafter", seed=5)
    converted(tiny, tmp_path / "drafter", tmp_path / "out", Parallel(2))
    at = "eagle_nets.1.drafter."
    for rank, file in enumerate(read_ranks(tmp_path / "out")):
        rows, inner = slice(32 * rank, 32 * rank + 32), slice(48 * rank, 48 * rank + 48)
        assert torch.equal(file[f"{at}fc.weight"], source["fc.weight"][rows])
        assert torch.equal(file[f"{at}fc.bias"], source["fc.bias"][rows])
        dense = source["layers.0.self_attn.o_proj.weight"]
        assert torch.equal(file[f"{at}layers.0.attention.dense.weight"], dense[:, rows])
        gate = source["layers.0.mlp.gate_proj.weight"]
        assert torch.equal(file[f"{at}layers.0.mlp.fc.weight"], gate[inner])
        assert torch.equal(file[f"{at}vocab_embedding.weight"], source["embed_tokens.weight"])
        assert file["eagle_nets.1.lm_head.weight"].shape == (160, 64)


def test_a_drafter_without_a_bias_gets_one_of_zeros(tiny: Path, tmp_path: Path) -> None:
    make_eagle(tmp_path / "drafter", seed=5, bias=False)
    converted(tiny, tmp_path / "drafter", tmp_path / "out", Parallel(2))
    for file in read_ranks(tmp_path / "out"):
        bias = file["eagle_nets.0.drafter.fc.bias"]
        assert bias.shape == (32,) and not bias.any()


def test_a_pickle_gives_the_same_checkpoint(tiny: Path, drafter: Path, tmp_path: Path) -> None:
    make_eagle(tmp_path / "pickled", seed=5, pickled=True)
    converted(tiny, drafter, tmp_path / "a")
    converted(tiny, tmp_path / "pickled", tmp_path / "b")
    for name in ("config.json", "rank0.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_pickle_with_code_in_it_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (print, ("ran",))

    make_eagle(tmp_path, seed=5, pickled=True, tensors={"fc.weight": Trap()})
    with pytest.raises(ConfigError, match="cannot be read as plain tensors"):
        opened(tmp_path)


def test_the_facts_count_what_is_written(tiny: Path, drafter: Path) -> None:
    model = read_model(open_source(tiny), "float32", opened(drafter))
    plans = planned_drafters(model) + planned_outputs(
        find_family(open_source(tiny).hf_config).tensors(model), LEVELS
    )
    values = sum(torch.Size(p.shape).numel() for p in plans if "embedding" not in p.name)
    assert model.drafter_parameters(model.vocab_size) == values


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 32, "head_dim": 8}, "hidden size 32 against 64"),
        ({"vocab_size": 300}, "vocabulary size 300 against 320"),
        ({"num_key_value_heads": 4}, "key-value heads 4 against 2"),
        ({"num_attention_heads": 2, "head_dim": 32}, "attention heads 2 against 4"),
        ({"rope_theta": 500000.0}, "rope_theta 500000.0 against 10000.0"),
    ],
)
def test_a_drafter_of_another_target_is_refused_by_the_plan(
    changes: dict[str, Any], words: str, tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    make_eagle(tmp_path / "drafter", seed=5, **changes)
    config = eagle_run(write_config, tmp_path / "drafter")
    with pytest.raises(Unsupported, match=words):
        build(Run(config, Workspace(tmp_path, config.name)), ("convert",))


def eagle_run(write_config: Callable[..., Path], drafter: Path, **engine: Any) -> Any:
    values: dict[str, Any] = {"backend": "tensorrt", "gpu": "L4", "dtype": "float16", "tp_size": 1}
    values |= {"max_input_len": 100, "max_seq_len": 200, **engine}
    return read_config(
        write_config(
            engine={key: value for key, value in values.items() if value is not None},
            speculation={"method": "eagle", "drafter": str(drafter), "tree": [[0, 0], [1]]},
        )
    )


@pytest.mark.parametrize(
    ("changes", "tensors", "error", "words"),
    [
        ({"num_hidden_layers": 2}, {}, Unsupported, "has 2 layers(.|\n)*one layer"),
        ({}, {"layers.0.input_layernorm.weight": (64,)}, ConfigError,
         "input_layernorm.weight: TensorRT-LLM's EAGLE drafter has no such part"),
        ({}, {"midlayer.mlp.up_proj.weight": (2, 2)}, Unsupported,
         "an EAGLE-3 drafter(.|\n)*method: eagle3"),
        ({"hidden_act": "gelu"}, {}, Unsupported, "hidden_act 'gelu'"),
    ],
    ids=["layers", "first norm", "EAGLE-3", "activation"],
)  # fmt: skip
def test_what_no_engine_can_run_is_refused_with_what_to_change(
    changes: dict[str, Any],
    tensors: dict[str, tuple[int, ...]],
    error: type[Exception],
    words: str,
    tmp_path: Path,
) -> None:
    more = {name: torch.zeros(shape) for name, shape in tensors.items()}
    make_eagle(tmp_path, seed=5, tensors=more, **changes)
    with pytest.raises(error, match=words):
        opened(tmp_path)


def test_the_cpu_engine_refuses_it_and_names_what_works(
    write_config: Callable[..., Path], drafter: Path, tmp_path: Path
) -> None:
    config = eagle_run(write_config, drafter, backend="openvino", gpu=None, dtype="float32")
    words = "eagle runs only in TensorRT-LLM engines; use backend: tensorrt, or one of medusa"
    with pytest.raises(Unsupported, match=words):
        build(Run(config, Workspace(tmp_path, config.name)), ("convert",))


def test_medusa_heads_are_no_drafter(tmp_path: Path) -> None:
    make_heads(tmp_path, seed=1)
    (tmp_path / "medusa_lm_head.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="no EAGLE drafter(.|\n)*method: medusa"):
        opened(tmp_path)


def test_a_drafter_that_is_cut_short_is_refused_by_name(tmp_path: Path) -> None:
    tensors = make_eagle(tmp_path, seed=5, pickled=True)
    del tensors["embed_tokens.weight"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"lacks embed_tokens\.weight"):
        opened(tmp_path)


def test_the_checkpoint_is_stale_when_drafter_or_tree_change(tiny: Path, drafter: Path) -> None:
    source = open_source(tiny)

    def changed(before: dict[str, str], found: EagleSource) -> set[str]:
        after = Conversion(source, "float32", found).inputs()
        return {name for name in after if before[name] != after[name]}

    before = Conversion(source, "float32", opened(drafter)).inputs()
    assert changed(before, opened(drafter, num_draft_tokens=8)) == {"max_draft_len"}
    assert changed(before, opened(drafter, num_eagle_layers=3)) == {"num_eagle_layers"}
    make_eagle(drafter, seed=5, rms_norm_eps=1e-5)
    assert changed(before, opened(drafter)) == {"heads config.json"}
    make_eagle(drafter, seed=6)
    assert changed(before, opened(drafter)) == {"heads model.safetensors"}


def test_the_convert_stage_writes_what_inspection_understands(
    write_config: Callable[..., Path], drafter: Path, tmp_path: Path
) -> None:
    config = eagle_run(write_config, drafter, tp_size=2)
    build(Run(config, Workspace(tmp_path, config.name)), ("convert",))
    folder = tmp_path / "engines/tiny/checkpoints/target"
    found = inspect_folder(folder, no_progress)
    assert found.defects == () and found.model.architecture == "EagleForCausalLM"
    assert not any("drafter" in what for what in found.unchecked)
    text = inspection_text(found)
    assert "an EAGLE drafter, levels of tree: 2, 3 drafted tokens a step" in text
    raw = json.loads((folder / "config.json").read_text())
    raw["eagle_net_config"]["intermediate_size"] = 32
    (folder / "config.json").write_text(json.dumps(raw))
    wrong = " ".join(map(str, inspect_folder(folder).defects))
    assert "eagle_nets.0.drafter.layers.0.mlp.fc.weight is 48 x 64, must be 16 x 64" in wrong


def test_ranks_that_do_not_divide_the_drafter_are_refused(
    tiny: Path, tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    make_eagle(tmp_path / "drafter", seed=5, intermediate_size=98)
    config = eagle_run(write_config, tmp_path / "drafter", tp_size=4)
    with pytest.raises(Unsupported, match="EAGLE drafter's inner width of 98 does not divide"):
        build(Run(config, Workspace(tmp_path, config.name)), ("convert",))
    with pytest.raises(Unsupported, match="EAGLE has no pipeline stages, but pp_size is 2"):
        converted(tiny, tmp_path / "drafter", tmp_path / "out", Parallel(1, 2))


def test_a_quantised_target_keeps_its_drafter_whole(tiny: Path, drafter: Path) -> None:
    from specpipe.checkpoint.quantized.formats import Quantizing, metadata

    model = read_model(open_source(tiny), "float32", opened(drafter))
    quantizing = Quantizing("fp8")
    excluded = metadata(quantizing, model)["exclude_modules"]
    assert isinstance(excluded, list) and "*eagle_nets*" in excluded
    assert not any(quantizing.includes(plan, model) for plan in planned_drafters(model))
    target = find_family(open_source(tiny).hf_config).tensors(model)
    assert any(quantizing.includes(plan, model) for plan in target)


def test_a_llama_3_drafter_has_its_targets_positions(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    target = make_llama(tmp_path / "target", seed=1, rope_scaling=dict(scaling))
    make_eagle(tmp_path / "drafter", seed=5)
    found = opened(tmp_path / "drafter")
    model = read_model(open_source(target), "float32", found)
    (rejection,) = found.check("target", model)
    assert "rope_scaling None against" in rejection.reason
