"""What is checked: families, layouts over ranks, methods and number formats."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Keys = dict[str, Any]
_BFLOAT16: Keys = {"dtype": "bfloat16"}
_TP2, _PP2 = {"tp_size": 2}, {"pp_size": 2}
_CLOSE, _NEAR = 0.9999, 0.999  # correlations: of float16, and of what rounds more


@dataclass(frozen=True)
class Case:
    """A model, how it is converted and built, and how close its logits must be."""

    name: str
    model: str
    engine: Keys = field(default_factory=dict)
    speculation: Keys = field(default_factory=dict)
    least: float = _CLOSE


def cases() -> list[Case]:
    """Return all cases."""
    return [*_layouts(), *_families(), *_variants(), *_methods(), *_formats()]


def _layouts() -> Iterator[Case]:
    """Yield Llama over ranks, and with each cut of its embedding."""
    yield Case("llama_bf16", "llama", _BFLOAT16, least=_NEAR)
    layouts: dict[str, Keys] = {
        "tp4": {"tp_size": 4}, "tp2pp2": _TP2 | _PP2,
        "embedding0": _TP2 | {"use_parallel_embedding": True},
        "embedding1": _TP2 | {"use_parallel_embedding": True, "embedding_sharding_dim": 1},
    }  # fmt: skip
    for name, engine in layouts.items():
        yield Case(f"llama_{name}", "llama", engine)
    yield Case("llama97_tp2", "llama97", _TP2)
    yield Case("llama97_tp4pp2", "llama97", {"tp_size": 4, "pp_size": 2})
    yield Case("mixtral_ep2", "mixtral", _TP2 | {"moe_ep_size": 2}, least=_NEAR)
    yield Case("mixtral_tp4ep2", "mixtral", {"tp_size": 4, "moe_ep_size": 2}, least=_NEAR)
    yield Case("qwen2_moe_ep2", "qwen2_moe", _TP2 | {"moe_ep_size": 2}, least=_NEAR)


def _families() -> Iterator[Case]:
    """Yield every family on one rank and on two, and some in two stages."""
    plain = ("llama", "llama3", "mistral", "mixtral", "qwen2", "qwen2_moe", "gemma", "gemma2",
             "phi", "phi3", "gpt2", "starcoder2", "gptneox", "falcon", "falcon40")  # fmt: skip
    for model in plain:
        own = _BFLOAT16 if model.startswith("gemma") else {}
        least = _NEAR if own or model in ("mixtral", "qwen2_moe") else _CLOSE
        for name, engine in (("", {}), ("_tp2", _TP2)):
            yield Case(model + name, model, own | engine, least=least)
        if model in ("llama", "mixtral", "qwen2", "gpt2", "gemma"):
            yield Case(f"{model}_pp2", model, own | _PP2, least=least)


def _variants() -> Iterator[Case]:
    """Yield variants of the families' configs that have keys of their own."""
    windows = {"max_seq_len": 20, "max_input_len": 12}
    chosen = {
        "LlamaForCausalLM": ("tied", "wide heads", "linear rope", "attention bias", "mlp bias"),
        "MistralForCausalLM": ("window",), "Qwen2MoeForCausalLM": ("normed",),
        "PhiForCausalLM": ("share",), "Phi3ForCausalLM": ("long rope",),
        "GPT2LMHeadModel": ("erf",), "Starcoder2ForCausalLM": ("no bias",),
        "FalconForCausalLM": ("11b", "rw", "rw of 6 heads"), "InternLM2ForCausalLM": ("plain",),
        "CohereForCausalLM": ("plain", "normed"), "Qwen2ForCausalLM": ("tied",),
    }  # fmt: skip
    for architecture, variants in chosen.items():
        for variant in variants:
            engine = windows if "window" in variant else {}
            short = architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel").lower()
            name = f"{short}_{variant.replace(' ', '_')}"
            yield Case(name, f"{architecture}/{variant}", engine)


def _methods() -> Iterator[Case]:
    """Yield the prompt's phase of every method."""
    yield Case("draft_model", "llama", {}, {"method": "draft_model", "num_draft_tokens": 4})
    sizes = {"window_size": 3, "ngram_size": 3, "verification_set_size": 3}
    yield Case("lookahead", "llama", {}, {"method": "lookahead", **sizes})
    medusa: Keys = {"method": "medusa", "num_draft_tokens": 7}
    yield Case("medusa", "llama", {}, medusa)
    yield Case("medusa_tp2", "llama", _TP2, medusa)
    yield Case("medusa97_tp2", "llama97", _TP2, medusa)
    yield Case("medusa_llama3", "llama3", {}, medusa)
    yield Case("medusa_qwen2", "qwen2", {"tensorrt_llm": "0.18.2"}, medusa)
    yield Case("medusa_int8", "llama", {"quantization": "int8"}, medusa, 0.995)
    eagle: Keys = {"method": "eagle", "num_draft_tokens": 7, "num_eagle_layers": 3}
    yield Case("eagle", "llama_mha", {}, eagle, _NEAR)
    yield Case("eagle_groups", "llama", {}, eagle, _NEAR)
    yield Case("eagle_tp2", "llama", _TP2, eagle, _NEAR)
    beams: Keys = {"method": "redrafter", "num_beams": 3, "draft_len_per_beam": 3}
    old = {"tensorrt_llm": "0.18.2"}
    yield Case("redrafter", "llama", old, beams, _NEAR)
    yield Case("redrafter_tp2", "llama", old | _TP2, beams, _NEAR)


def _formats() -> Iterator[Case]:
    """Yield number formats: of `trtllm-build`, and those of quantized checkpoints."""
    int8, int4 = {"quantization": "int8"}, {"quantization": "int4"}
    yield Case("int8", "int8:wide", int8)
    yield Case("int8_tp2", "int8:wide", int8 | _TP2, least=_NEAR)
    yield Case("int8_mixtral", "mixtral", int8, least=0.99)
    yield Case("int8_gpt2", "gpt2", int8, least=0.99)
    yield Case("int8_fp8_cache", "wide", int8 | {"kv_cache_quantization": "fp8"}, least=0.99)
    yield Case("int4", "int4:wide", int4, least=0.998)
    awq: Keys = {"quantization": "int4_awq"}
    yield Case("awq", "awq:wide", awq, least=_NEAR)
    yield Case("awq_tp2", "awq:wide", awq | _TP2, least=_NEAR)
    yield Case("awq_qwen2", "awq:wide_qwen2", awq, least=_NEAR)
    yield Case("gptq", "gptq:wide", awq, least=_NEAR)
    yield Case("gptq_tp2pp2", "gptq:wide", awq | _TP2 | _PP2, least=_NEAR)
    fp8: Keys = {"quantization": "fp8", "kv_cache_quantization": "fp8"}
    yield Case("fp8", "modelopt_fp8:wide", fp8, least=0.98)
    yield Case("fp8_tp2", "modelopt_fp8:wide", fp8 | _TP2, least=0.98)
    yield Case("fp8_mixtral", "modelopt_fp8:wide_moe", fp8, least=0.98)
    medusa: Keys = {"method": "medusa", "num_draft_tokens": 7}
    yield Case("fp8_medusa", "modelopt_fp8:wide", fp8, medusa, 0.98)
