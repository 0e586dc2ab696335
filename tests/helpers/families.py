"""A tiny random model of every family, with its real class, and variants with other configs."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.helpers.models import make_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 512, "initializer_range": 0.2, "tie_word_embeddings": False,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_MOE = {
    "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
}  # fmt: skip
QWEN3_MOE = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
GEMMA3 = {
    "layer_types": ["sliding_attention", "full_attention"], "rope_theta": 1e6,
    "rope_local_base_freq": 500.0,
}  # fmt: skip
GLM = {**GROUPED, "head_dim": 24, "pad_token_id": None}
SHARE = {"partial_rotary_factor": 0.25}
FALCON_RW = {"alibi": True, "bias": True, "parallel_attn": False, "multi_query": False}
WINDOW = {"sliding_window": 20}
GRANITE = {
    "embedding_multiplier": 3.0, "attention_multiplier": 0.4, "residual_multiplier": 0.6,
    "logits_scaling": 2.5,
}  # fmt: skip
INTERNLM2 = {"model_type": "internlm2", "bias": False}
GPT2 = {
    "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 256,
    "short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [2.0] * 8,
}  # fmt: skip


NEW_ROPE = int(version("transformers").split(".")[0]) >= 5  # and `layer_types` everywhere


def rope(**rule: Any) -> dict[str, Any]:
    """Return a config's rope keys, in the spelling of the transformers that is installed."""
    rule = {"rope_type": "default", "rope_theta": 10000.0, **rule}
    if NEW_ROPE:
        return {"rope_parameters": rule}
    theta = {"rope_theta": rule.pop("rope_theta")}
    share = "partial_rotary_factor"
    theta |= {share: rule.pop(share)} if share in rule else {}
    if rule["rope_type"] == "default":
        return theta
    if rule["rope_type"] == "longrope":
        theta["original_max_position_embeddings"] = rule.pop("original_max_position_embeddings")
        rule["type"] = rule.pop("rope_type")
    return {**theta, "rope_scaling": rule}


@dataclass(frozen=True)
class World:
    """One architecture of the table: its classes, its sizes, and variants of its config."""

    model: str  # class in transformers
    sizes: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    rewrite: Callable[[Path], None] | None = None  # turns what transformers wrote into the family's
    written: dict[str, Any] = field(default_factory=dict)  # keys of config.json that it writes
    config: str = ""  # class of its config; by default the model's


def _as_internlm2(folder: Path) -> None:
    """Write a Llama as InternLM2 stores it: one matrix of (group: queries, key, value) rows."""
    import torch
    from safetensors.torch import load_file, save_file

    file, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    old, new = load_file(file), {}
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    names = {
        "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        "embed_tokens": "tok_embeddings", "lm_head": "output",
    }  # fmt: skip
    for name, tensor in old.items():
        if "q_proj" in name:
            query = tensor.chunk(heads)
            key, value = (old[name.replace("q_proj", f"{n}_proj")].chunk(groups) for n in "kv")
            rows, each = [], heads // groups
            for g in range(groups):
                rows += [*query[g * each : (g + 1) * each], key[g], value[g]]
            new[name.replace("self_attn.q_proj", "attention.wqkv")] = torch.cat(rows)
        elif "k_proj" not in name and "v_proj" not in name:
            for theirs, ours in names.items():
                name = name.replace(theirs, ours)
            new[name] = tensor.clone()
    save_file(new, file, metadata={"format": "pt"})
    config |= {"architectures": ["InternLM2ForCausalLM"], **INTERNLM2}
    config["auto_map"] = {"AutoConfig": "configuration_internlm2.InternLM2Config"}  # code, not run
    (folder / "config.json").write_text(json.dumps(config))


WORLDS: dict[str, World] = {
    "LlamaForCausalLM": World(
        "Llama",
        GROUPED,
        {
            "plain": {},
            "tied": {"tie_word_embeddings": True},
            "no groups": {"num_key_value_heads": 4},  # like Llama 2 and Vicuna
            "one group": {"num_key_value_heads": 1},
            "wide heads": {"head_dim": 32},
            "llama3 rope": rope(**LLAMA3),
            "linear rope": rope(rope_type="linear", factor=4.0),
            "yarn": rope(**YARN),
            "yarn with its own factor": rope(**YARN, attention_factor=1.3, truncate=False),
            "attention bias": {"attention_bias": True},
            "mlp bias": {"mlp_bias": True},
        },
    ),
    "MistralForCausalLM": World(
        "Mistral",
        GROUPED,
        {"plain": {"sliding_window": None}, "window": WINDOW},
    ),
    "MixtralForCausalLM": World("Mixtral", {**GROUPED, **MOE}, {"plain": {}, "window": WINDOW}),
    "Qwen2ForCausalLM": World(
        "Qwen2",
        GROUPED,
        {
            "plain": {},
            "tied": {"tie_word_embeddings": True},
            "late window": {
                "use_sliding_window": True,
                "sliding_window": 20,
                "max_window_layers": 1,
            },
            "yarn": rope(**YARN, beta_fast=16.0, beta_slow=2.0),
        },
    ),
    "Qwen2MoeForCausalLM": World(
        "Qwen2Moe",
        {**GROUPED, **QWEN_MOE},
        {
            "plain": {},
            "normed": {"norm_topk_prob": True},
            # transformers 4 reads no `layer_types`, and slides other layers
            **({"window": {"use_sliding_window": True, **WINDOW}} if NEW_ROPE else {}),
        },
    ),
    "Qwen3ForCausalLM": World(
        "Qwen3",
        {**GROUPED, "head_dim": 24},
        {
            "plain": {},
            "tied": {"tie_word_embeddings": True},
            "yarn": rope(**YARN, mscale=1.0, mscale_all_dim=0.7),
        },
    ),
    "GemmaForCausalLM": World(
        "Gemma",
        {**SIZES, "num_key_value_heads": 1, "head_dim": 24, "tie_word_embeddings": True},
        {"plain": {}},
    ),
    "Gemma2ForCausalLM": World(
        "Gemma2",
        {**GROUPED, "head_dim": 24, "query_pre_attn_scalar": 20, "tie_word_embeddings": True},
        {
            "window": WINDOW,
            "low caps": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        },
    ),
    "PhiForCausalLM": World("Phi", SIZES, {"plain": {}, "share": rope(partial_rotary_factor=0.25)}),
    "Phi3ForCausalLM": World(
        "Phi3",
        {**GROUPED, "pad_token_id": 0},
        {
            "plain": {},
            "window": WINDOW,
            "long rope": {**rope(**LONG), "original_max_position_embeddings": 256},
            "share": rope(partial_rotary_factor=0.5),
        },
    ),
    "GPT2LMHeadModel": World("GPT2", GPT2, {"plain": {}, "erf": {"activation_function": "gelu"}}),
    "GPTNeoXForCausalLM": World(
        "GPTNeoX",
        SIZES,
        {
            "plain": {},
            "share": rope(partial_rotary_factor=0.5),
            "in turn": {"use_parallel_residual": False},
            "no bias": {"attention_bias": False},
        },
    ),
    "Starcoder2ForCausalLM": World(
        "Starcoder2",
        GROUPED,
        {
            "plain": {"sliding_window": None},
            "window": WINDOW,
            "no bias": {"use_bias": False},
        },
    ),
    "FalconForCausalLM": World(
        "Falcon",
        {k: v for k, v in SIZES.items() if k != "intermediate_size"},
        {
            "7b": {},
            "40b": {"new_decoder_architecture": True, "num_kv_heads": 2},
            "11b": {
                "new_decoder_architecture": True,
                "num_kv_heads": 2,
                "num_ln_in_parallel_attn": 1,
            },
            "rw": FALCON_RW,
            "rw of 6 heads": {**FALCON_RW, "num_attention_heads": 6, "hidden_size": 96},
        },
    ),
    "GraniteForCausalLM": World("Granite", GROUPED, {"plain": GRANITE}),
    "Olmo2ForCausalLM": World("Olmo2", GROUPED, {"plain": {}, "bias": {"attention_bias": True}}),
    "SmolLM3ForCausalLM": World(
        "SmolLM3",
        {**GROUPED, "pad_token_id": None},
        {
            "every other layer": {"no_rope_layer_interval": 2},
            "window": {"no_rope_layers": [0, 1], "use_sliding_window": True, **WINDOW},
        },
    ),
    "Qwen3MoeForCausalLM": World(
        "Qwen3Moe",
        {**GROUPED, **QWEN3_MOE},
        {
            "plain": {"head_dim": 24, "norm_topk_prob": True},
            "window": {"use_sliding_window": True, **WINDOW},
        },
    ),
    "Gemma3ForCausalLM": World(
        "Gemma3",
        {**GROUPED, "head_dim": 24, "query_pre_attn_scalar": 20, "tie_word_embeddings": True},
        {
            "window": {**GEMMA3, **WINDOW, "final_logit_softcapping": 3.0},
            "linear rope": {**GEMMA3, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        },
        config="Gemma3TextConfig",
    ),
    "CohereForCausalLM": World(
        "Cohere",
        {**GROUPED, "tie_word_embeddings": True, "logit_scale": 0.25},
        {"plain": {}, "normed": {"use_qk_norm": True, "attention_bias": True}},
    ),
    "Cohere2ForCausalLM": World(
        "Cohere2",
        {**GROUPED, "tie_word_embeddings": True, "logit_scale": 0.25},
        {"window": {"layer_types": GEMMA3["layer_types"], **WINDOW}},
    ),
    "GlmForCausalLM": World("Glm", GLM, {"plain": {}}),
    "Glm4ForCausalLM": World(
        "Glm4", GLM, {"plain": {}, "no bias": {**rope(**YARN, **SHARE), "attention_bias": False}}
    ),
    "InternLM2ForCausalLM": World("Llama", GROUPED, {"plain": {}}, _as_internlm2, INTERNLM2),
}


def _config(architecture: str, variant: str, **changes: Any) -> Any:
    """Return transformers' config object; `variant` is a key of the world's variants."""
    import transformers

    world, tokenizer = WORLDS[architecture], make_tokenizer()
    values = {
        "vocab_size": len(tokenizer) + 8, "bos_token_id": None, "pad_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, **world.sizes, **world.variants[variant], **changes,
    }  # fmt: skip
    return getattr(transformers, world.config or f"{world.model}Config")(**values)


@cache
def _config_json(architecture: str, variant: str) -> str:
    config = json.loads(_config(architecture, variant).to_json_string(use_diff=False))
    written = WORLDS[architecture].written
    return json.dumps({**config, "architectures": [architecture], **written})


def config_of(architecture: str, variant: str | None = None) -> dict[str, Any]:
    """Return a parsed config.json of a variant, or of the first one; the model is not made."""
    first = next(iter(WORLDS[architecture].variants))
    config: dict[str, Any] = json.loads(_config_json(architecture, variant or first))
    return config


def make_family(folder: Path, architecture: str, variant: str, **changes: Any) -> Path:
    """Write a random model with a tokenizer into `folder`, as transformers saves it.

    `changes` are further keys of its config. The weights of norms and biases are random too, so
    that none of them can be forgotten.
    """
    import torch
    import transformers

    world = WORLDS[architecture]
    ends = "LMHeadModel" if world.model == "GPT2" else "ForCausalLM"
    torch.manual_seed(3)
    config = _config(architecture, variant, **changes)
    model = getattr(transformers, f"{world.model}{ends}")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += torch.randn_like(parameter) * 0.2
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


WRONG = (None, True, False, -1, 0, 1, 7, 1.5, -0.5, float("inf"), float("nan"), 10**30, 10**400, "",
         "x", "7", "null", [], [[]], [None], [-1], {}, {"a": 1}, {"rope_type": []})  # fmt: skip


def with_wrong_values(facts: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the facts with every value replaced by wrong ones, and with every key left out."""
    for key, old in facts.items():
        yield key, {k: v for k, v in facts.items() if k != key}
        for value in WRONG:
            yield key, {**facts, key: value}
            for inner in old if isinstance(old, dict) else ():
                yield inner, {**facts, key: {**old, inner: value}}
