"""The facts of every family: number of weights, config.json, and unsupported models."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from specpipe.checkpoint.convert import Conversion
from specpipe.checkpoint.families import FAMILIES, Shard, find_family, read_facts
from specpipe.checkpoint.source import open_source
from specpipe.core.artifacts import read_model_config, write_arithmetic
from specpipe.core.errors import Unsupported
from specpipe.core.model import ModelConfig
from specpipe.engine.openvino.backend import OpenVinoBackend
from specpipe.engine.tensorrt.backend import TensorRtBackend
from tests.helpers.build_requests import build_request
from tests.helpers.families import WORLDS, config_of, make_family

CASES = [(name, variant) for name, world in WORLDS.items() for variant in world.variants]


def facts(name: str, variant: str, **changes: Any) -> ModelConfig:
    config = {**config_of(name, variant), **changes}
    return read_facts(config, "float32")


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_parameters_are_counted_as_they_are_written(name: str, variant: str) -> None:
    model = facts(name, variant)
    plans = find_family(config_of(name, variant)).tensors(model)
    written = sum(math.prod(plan.shape) for plan in plans)
    twice = model.vocab_size * model.hidden_size if model.tie_word_embeddings else 0
    assert model.num_parameters == written - twice


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_facts_survive_the_files_of_a_checkpoint(name: str, variant: str, tmp_path: Path) -> None:
    model = facts(name, variant)
    raw = {**model.to_json(), "mapping": {}, "logits_dtype": "float32"}
    assert "arithmetic" not in raw  # TensorRT-LLM warns of keys that its classes do not have
    (tmp_path / "config.json").write_text(json.dumps(raw))
    write_arithmetic(model, tmp_path)
    plans = replace(model, upstream_limits=(), upstream_since=(0, 0))
    assert read_model_config(tmp_path) == replace(plans, rotary_embedding_dim=model.rotary_dim)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_has_a_place_and_shapes_that_fit_its_cut(name: str) -> None:
    model = facts(name, next(iter(WORLDS[name].variants)))
    plans = find_family(config_of(name)).tensors(model)
    assert len({plan.name for plan in plans}) == len(plans)
    for plan in plans:
        assert (plan.layer is not None) == plan.name.startswith("transformer.layers.")
        assert plan.layer is None or plan.name.split(".")[2] == str(plan.layer)
        size = sum(math.prod(shape) for shape in plan.source_shapes)
        assert size == math.prod(plan.shape)
        if plan.shard is Shard.QKV:
            heads = model.num_attention_heads + 2 * model.num_key_value_heads
            assert plan.shape[0] == heads * model.head_size
        if plan.shard in (Shard.GATED, Shard.EXPERT_GATED):
            assert plan.shape[-2] % 2 == 0
    first = {plan.name for plan in plans if plan.layer is None and plan.stage == "first"}
    tables = {f"transformer.{kind}_embedding.weight" for kind in ("vocab", "position")}
    assert first == tables & {plan.name for plan in plans}


UPSTREAM_KEYS = {  # read by TensorRT-LLM's classes in addition to the common keys
    "LlamaForCausalLM": {"attn_bias", "mlp_bias", "rotary_base", "residual_mlp"},
    "MistralForCausalLM": {"attn_bias", "mlp_bias", "rotary_base", "residual_mlp"},
    "MixtralForCausalLM": {"moe", "rotary_base", "residual_mlp"},
    "Qwen2ForCausalLM": {"qwen_type", "seq_length", "use_logn_attn", "attn_bias"},
    "Qwen2MoeForCausalLM": {
        "qwen_type", "seq_length", "moe", "moe_intermediate_size",
        "moe_shared_expert_intermediate_size",
    },
    "Qwen3ForCausalLM": {"qwen_type", "qk_layernorm", "attn_bias"},
    "GemmaForCausalLM": {"inter_layernorms", "rotary_base", "rotary_scaling"},
    "Gemma2ForCausalLM": {
        "inter_layernorms", "query_pre_attn_scalar", "attn_logit_softcapping",
        "final_logit_softcapping",
    },
    "Gemma3ForCausalLM": {
        "inter_layernorms", "query_pre_attn_scalar", "_sliding_window_pattern",
        "rope_local_base_freq", "sliding_window",
    },
    "CohereForCausalLM": {"output_multiplier_scale", "rotary_base", "attn_bias", "qk_layernorm"},
    "PhiForCausalLM": {"rotary_pct", "rotary_base", "rotary_scaling"},
    "Phi3ForCausalLM": {"rotary_pct", "rotary_base", "rotary_scaling"},
    "GPT2LMHeadModel": {"gpt_variant", "bias", "q_scaling", "inner_layernorm"},
    "GPTNeoXForCausalLM": {"rotary_pct", "rotary_emb_base"},
    "Starcoder2ForCausalLM": {"gpt_variant", "bias", "rotary_base", "rotary_pct"},
    "FalconForCausalLM": {
        "bias", "parallel_attention", "num_ln_in_parallel_attn", "new_decoder_architecture",
        "rotary_base",
    },
    "InternLM2ForCausalLM": {"attn_bias", "rotary_base", "rotary_scaling"},
    "GraniteForCausalLM": {
        "embedding_multiplier", "attention_multiplier", "residual_multiplier",
        "output_multiplier_scale",
    },
    "Olmo2ForCausalLM": set(),  # no release has a class
    "SmolLM3ForCausalLM": set(),
    "Cohere2ForCausalLM": set(),
    "GlmForCausalLM": set(),
    "Glm4ForCausalLM": set(),
    "Qwen3MoeForCausalLM": {
        "qwen_type", "seq_length", "moe", "moe_intermediate_size", "qk_layernorm",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_config_json_has_every_key_of_upstreams_classes(name: str, tmp_path: Path) -> None:
    folder = make_family(tmp_path / "model", name, next(iter(WORLDS[name].variants)))
    if rewrite := WORLDS[name].rewrite:
        rewrite(folder)
    out = tmp_path / "out"
    out.mkdir()
    Conversion(open_source(folder), "bfloat16").write(out, lambda done, total: None)
    config = json.loads((out / "config.json").read_text())
    assert config["architecture"] == name
    assert UPSTREAM_KEYS[name] <= set(config)
    assert config["position_embedding_type"] and config["head_size"]
    model = read_model_config(out)
    stored = load_file(out / "rank0.safetensors")
    shapes = {plan.name: plan.shape for plan in find_family(config_of(name)).tensors(model)}
    assert {name: tuple(t.shape) for name, t in stored.items()} == shapes
    kinds = {str(t.dtype) for n, t in stored.items() if "router" not in n}
    assert kinds == {"torch.bfloat16"}


def test_the_router_of_experts_is_kept_in_float32(tmp_path: Path) -> None:
    folder = make_family(tmp_path / "model", "MixtralForCausalLM", "plain")
    (tmp_path / "out").mkdir()
    Conversion(open_source(folder), "bfloat16").write(tmp_path / "out", lambda *at: None)
    stored = load_file(tmp_path / "out/rank0.safetensors")
    router = stored["transformer.layers.0.mlp.router.weight"]
    theirs = load_file(folder / "model.safetensors")["model.layers.0.block_sparse_moe.gate.weight"]
    assert router.equal(theirs)


def test_a_gpt2_that_was_saved_without_its_head_has_the_same_checkpoint(tmp_path: Path) -> None:
    folder = make_family(tmp_path / "model", "GPT2LMHeadModel", "plain")
    expected, got = tmp_path / "a", tmp_path / "b"
    for out in (expected, got):
        out.mkdir()
        Conversion(open_source(folder), "float32").write(out, lambda *at: None)
        file = folder / "model.safetensors"
        tensors = {k.removeprefix("transformer."): v for k, v in load_file(file).items()}
        tensors["h.0.attn.bias"] = tensors["wte.weight"][
            :1
        ].clone()  # a buffer of the first release
        save_file(tensors, file, metadata={"format": "pt"})
    for name in ("rank0.safetensors", "config.json"):
        assert (expected / name).read_bytes() == (got / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("LlamaForCausalLM", {"hidden_act": "gelu"}, "hidden_act 'gelu'; known here: silu"),
        ("Qwen3ForCausalLM", {"attention_bias": True}, "attention_bias"),
        ("Qwen2MoeForCausalLM", {"mlp_only_layers": [1]}, "layers without experts"),
        ("Qwen2MoeForCausalLM", {"decoder_sparse_step": 2}, "layers without experts"),
        ("Qwen3MoeForCausalLM", {"mlp_only_layers": [1]}, "layers without experts"),
        ("Qwen3MoeForCausalLM", {"attention_bias": True}, "attention_bias"),
        ("GemmaForCausalLM", {"attention_bias": True}, "no Gemma has biases"),
        ("PhiForCausalLM", {"qk_layernorm": True}, "no released Phi has it"),
        ("GPT2LMHeadModel", {"scale_attn_weights": False}, "how attention is scaled"),
        ("Phi3ForCausalLM", {"rope_parameters": {"rope_type": "yarn"}}, "of type 'yarn'"),
        ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "longrope"}}, "type 'longrope'"),
    ],
)
def test_what_cannot_be_converted_is_refused(name: str, changes: dict, words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        facts(name, next(iter(WORLDS[name].variants)), **changes)


def reasons(backend, model: ModelConfig, **changes: Any) -> str:
    values = {"dtype": "bfloat16", "max_batch_size": 1, "max_input_len": 15, "max_seq_len": 16,
              "gpu": "H100-SXM", **changes}  # fmt: skip
    return " ".join(r.reason for r in backend.check(build_request(model, **values)))


@pytest.mark.parametrize(
    ("name", "variant", "changes", "words"),
    [
        ("GPTNeoXForCausalLM", "in turn", {}, "side by side, this model in turn"),
        ("GPTNeoXForCausalLM", "no bias", {}, "biases in attention"),
        ("GPTNeoXForCausalLM", "plain", {"intermediate_size": 96}, "four times the hidden size"),
        ("PhiForCausalLM", "plain", {"num_key_value_heads": 2}, "a KV head for every head"),
        ("PhiForCausalLM", "plain", {"layer_norm_eps": 1e-6}, "an epsilon of 1e-5"),
    ],
)
def test_plan_says_what_upstreams_class_would_compute_otherwise(
    name: str, variant: str, changes: dict, words: str
) -> None:
    assert words in reasons(TensorRtBackend(), facts(name, variant, **changes))


@pytest.mark.parametrize(
    ("name", "variant", "since"),
    [
        ("Qwen3ForCausalLM", "plain", "Qwen3ForCausalLM since 1.0"),
        ("Qwen3MoeForCausalLM", "plain", "Qwen3MoeForCausalLM since 1.1"),
        ("GraniteForCausalLM", "plain", "GraniteForCausalLM since 0.19"),
        ("LlamaForCausalLM", "yarn", "LlamaForCausalLM with yarn since 0.20"),
    ],
)
def test_plan_says_from_which_release_on_a_family_is_there(
    name: str, variant: str, since: str
) -> None:
    model = facts(name, variant)
    old = reasons(TensorRtBackend(), model, release="0.18.2")
    assert f"supports {since}, the config uses 0.18.2" in old
    assert "since" not in reasons(TensorRtBackend(), model, release="1.2.1")


def test_plan_keeps_engines_within_the_sliding_window() -> None:
    model = facts("MistralForCausalLM", "window")
    assert "a sliding window of 20 tokens" in reasons(TensorRtBackend(), model, max_seq_len=21)
    assert "tokens" not in reasons(TensorRtBackend(), model, max_seq_len=20, max_input_len=10)
    cpu = reasons(OpenVinoBackend(), model, max_seq_len=400, gpu=None)
    assert "tokens" not in cpu  # its masks know the window


def test_plan_keeps_the_cpu_engine_where_long_rope_has_one_rule() -> None:
    model = facts("Phi3ForCausalLM", "long rope")
    assert "beyond 256 tokens" in reasons(OpenVinoBackend(), model, max_seq_len=257, gpu=None)
    assert "LongRoPE" not in reasons(OpenVinoBackend(), model, max_seq_len=256, gpu=None)


def test_windows_as_long_as_the_model_are_none() -> None:
    assert facts("MistralForCausalLM", "window", sliding_window=512).sliding_window is None
    assert facts("Gemma2ForCausalLM", "window").arithmetic.sliding_windows == (20, 0)


def test_first_releases_of_falcon_and_gemma_are_read() -> None:
    old = {"architectures": ["FalconForCausalLM"], "model_type": "RefinedWeb", "n_layer": 2,
           "n_head": 8, "n_head_kv": 2, "hidden_size": 64, "vocab_size": 100}  # fmt: skip
    model = read_facts(old, "float16")
    assert (model.num_key_value_heads, model.arithmetic.residual) == (2, "parallel")
    assert facts("GemmaForCausalLM", "plain", hidden_act="gelu").hidden_act == "gelu_pytorch_tanh"


def llama_like(layers: int, hidden: int, heads: int, kv: int, inner: int, vocab: int) -> dict:
    return {
        "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
        "num_key_value_heads": kv, "intermediate_size": inner, "vocab_size": vocab,
        "max_position_embeddings": 32768,
    }  # fmt: skip


PUBLISHED = [  # models as their owners published them, and how many parameters theirs have
    ("LlamaForCausalLM", llama_like(32, 4096, 32, 8, 14336, 128256), 8_030_261_248),
    ("MistralForCausalLM", llama_like(32, 4096, 32, 8, 14336, 32000), 7_241_732_096),
    (
        "MixtralForCausalLM",
        {**llama_like(32, 4096, 32, 8, 14336, 32000), "num_local_experts": 8,
         "num_experts_per_tok": 2},
        46_702_792_704,
    ),
    ("Qwen2ForCausalLM", llama_like(28, 3584, 28, 4, 18944, 152064), 7_615_616_512),
    (
        "Qwen2MoeForCausalLM",
        {**llama_like(24, 2048, 16, 16, 5632, 151936), "num_experts": 60,
         "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
         "shared_expert_intermediate_size": 5632},
        14_315_784_192,
    ),
    ("Qwen3ForCausalLM", llama_like(36, 4096, 32, 8, 12288, 151936), 8_190_735_360),
    ("GemmaForCausalLM", llama_like(18, 2048, 8, 1, 16384, 256000), 2_506_172_416),
    ("Gemma2ForCausalLM", {**llama_like(42, 3584, 16, 8, 14336, 256000), "head_dim": 256},
     9_241_705_984),
    ("PhiForCausalLM", llama_like(32, 2560, 32, 32, 10240, 51200), 2_779_683_840),
    ("Phi3ForCausalLM", llama_like(32, 3072, 32, 32, 8192, 32064), 3_821_079_552),
    (
        "GPT2LMHeadModel",
        {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257},
        124_439_808,
    ),
    ("GPTNeoXForCausalLM", llama_like(32, 4096, 32, 32, 16384, 50432), 6_857_302_016),
    ("Starcoder2ForCausalLM", llama_like(30, 3072, 24, 2, 12288, 49152), 3_030_371_328),
    (
        "FalconForCausalLM",
        {"num_hidden_layers": 32, "hidden_size": 4544, "num_attention_heads": 71,
         "vocab_size": 65024, "multi_query": True, "parallel_attn": True},
        6_921_720_704,
    ),
    ("InternLM2ForCausalLM", {**llama_like(32, 4096, 32, 8, 14336, 92544), "bias": False},
     7_737_708_544),
    (
        "GraniteForCausalLM",
        {**llama_like(40, 4096, 32, 8, 12800, 49155), "tie_word_embeddings": True},
        8_170_848_256,
    ),
    ("Olmo2ForCausalLM", llama_like(32, 4096, 32, 32, 11008, 100352), 7_298_617_344),
    ("SmolLM3ForCausalLM", llama_like(36, 2048, 16, 4, 11008, 128256), 3_075_098_624),
    (
        "Qwen3MoeForCausalLM",
        {**llama_like(48, 2048, 32, 4, 6144, 151936), "head_dim": 128, "num_experts": 128,
         "num_experts_per_tok": 8, "moe_intermediate_size": 768},
        30_532_122_624,
    ),
    ("Gemma3ForCausalLM", {**llama_like(26, 1152, 4, 1, 6912, 262144), "head_dim": 256},
     999_885_952),
    (
        "CohereForCausalLM",
        {**llama_like(40, 8192, 64, 64, 22528, 256000), "rope_theta": 8e6},
        34_980_831_232,
    ),
    ("Cohere2ForCausalLM", llama_like(32, 4096, 32, 8, 14336, 256000), 8_028_033_024),
    ("GlmForCausalLM", llama_like(40, 4096, 32, 2, 13696, 151552), 9_399_951_360),
    ("Glm4ForCausalLM", llama_like(40, 4096, 32, 2, 13696, 151552), 9_400_279_040),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config", "parameters"), PUBLISHED, ids=[p[0] for p in PUBLISHED])
def test_released_models_have_as_many_parameters_as_were_published(
    name: str, config: dict, parameters: int
) -> None:
    hf = {"architectures": [name], **config}
    assert read_facts(hf, "bfloat16").num_parameters == parameters
