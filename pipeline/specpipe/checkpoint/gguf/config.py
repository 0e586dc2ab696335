"""The config.json that a GGUF file stands for: its metadata under Hugging Face's keys.

Everything the file states is set. What no file states, since llama.cpp knows it by the
architecture, is set as llama.cpp has it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from specpipe.checkpoint.gguf.header import GgufHeader
from specpipe.checkpoint.gguf.rope import scaling_of
from specpipe.checkpoint.gguf.tensors import SPELLINGS
from specpipe.core.errors import ConfigError, Unsupported

Facts = dict[str, Any]
_SIZES = {
    "context_length": "max_position_embeddings", "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}  # fmt: skip
_NEEDED = ("context_length", "block_count", "embedding_length", "attention.head_count")
_TOKENS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}


def config_of(header: GgufHeader) -> Facts:
    """Return the config.json that a file stands for.

    Raises Unsupported for an architecture, or a kind of file, that cannot be read, ConfigError if
    the metadata lacks what every model has.
    """
    _refuse_other_files(header)
    for key in _NEEDED:
        if header.fact(key) is None:
            raise ConfigError(f"{header.path}: its metadata has no {header.architecture}.{key}")
    known = {key: value for key, value in _shared(header).items() if value is not None}
    own = _OF[header.architecture](header, known)
    return {**known, "pad_token_id": known.get("pad_token_id"), **own}


def _refuse_other_files(header: GgufHeader) -> None:
    kind, parts = header.facts.get("general.type", "model"), header.facts.get("split.count", 1)
    if kind != "model":
        raise Unsupported(f"{header.path}: a GGUF file of type {kind!r}, not a model")
    if isinstance(parts, int) and parts > 1:
        raise Unsupported(
            f"{header.path}: one of {parts} parts of a model",
            hint="join them with `llama-gguf-split --merge` of llama.cpp",
        )
    if header.architecture not in SPELLINGS:
        raise Unsupported(
            f"{header.path}: GGUF files of architecture {header.architecture!r} cannot be read",
            hint=f"known: {', '.join(SPELLINGS)}; or give the folder that the file was made from",
        )


def _shared(header: GgufHeader) -> Facts:
    """Return the keys that most architectures have."""
    facts = {ours: _one(header, key) for key, ours in _SIZES.items()}
    heads = facts["num_attention_heads"]
    return {
        **facts,
        "num_key_value_heads": facts["num_key_value_heads"] or heads,
        "vocab_size": _table(header)[0],  # rows of the embedding: it may be padded
        "rope_theta": header.fact("rope.freq_base") or 10000.0,
        "rope_scaling": scaling_of(header),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        **{k: header.facts.get(f"tokenizer.ggml.{n}_token_id") for n, k in _TOKENS.items()},
    }


def _one(header: GgufHeader, key: str) -> Any:
    """Return a number that all layers have; raises Unsupported if they differ."""
    value = header.fact(key)
    if isinstance(value, tuple):
        if len(set(value)) != 1:
            raise Unsupported(f"{header.path}: layers differ in {header.architecture}.{key}")
        return value[0]
    return value


def _table(header: GgufHeader) -> tuple[int, ...]:
    if "token_embd.weight" not in header.tensors:
        raise ConfigError(f"{header.path}: there is no tensor token_embd.weight")
    return header.tensors["token_embd.weight"].shape


def _llama(header: GgufHeader, known: Facts) -> Facts:
    if _one(header, "expert_count"):
        raise Unsupported(
            f"{header.path}: a mixture of experts in a GGUF file of architecture 'llama' "
            "cannot be read",
            hint="give the folder that the file was made from",
        )
    size = known.get("head_dim", known["hidden_size"] // known["num_attention_heads"])
    rotated = header.fact("rope.dimension_count") or size
    if rotated != size:
        raise Unsupported(f"{header.path}: rotates {rotated} of {size} values of a head")
    biased = {"attention_bias": "attn_q", "mlp_bias": "ffn_up"}
    has = {key: f"blk.0.{part}.bias" in header.tensors for key, part in biased.items()}
    return {**_named("LlamaForCausalLM", "llama"), **has}


def _qwen2_moe(header: GgufHeader, known: Facts) -> Facts:
    return {
        **_named("Qwen2MoeForCausalLM", "qwen2_moe"),
        "num_experts": _one(header, "expert_count"),
        "num_experts_per_tok": _one(header, "expert_used_count"),
        "moe_intermediate_size": _rows(header, "ffn_up_exps", 1),
        "shared_expert_intermediate_size": _rows(header, "ffn_up_shexp", 0),
    }


def _rows(header: GgufHeader, part: str, dim: int) -> int | None:
    entry = header.tensors.get(f"blk.0.{part}.weight")
    return entry.shape[dim] if entry and len(entry.shape) > dim else None


def _gemma2(header: GgufHeader, known: Facts) -> Facts:
    """No file states the scale of the queries: 27B, of 46 layers, has another than the others."""
    size = known.get("head_dim", 256)
    if known["num_hidden_layers"] == 46:
        size = known["hidden_size"] // known["num_attention_heads"]
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    return {
        **_named("Gemma2ForCausalLM", "gemma2"),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": size,
        "sliding_window": header.fact("attention.sliding_window") or 4096,
        **{cap: value for cap in caps if (value := header.fact(cap)) is not None},
    }


def _phi3(header: GgufHeader, known: Facts) -> Facts:
    size = known.get("head_dim", known["hidden_size"] // known["num_attention_heads"])
    rotated, key = header.fact("rope.dimension_count"), "original_max_position_embeddings"
    share = rotated / size if isinstance(rotated, int) else 1.0
    original = header.fact("rope.scaling.original_context_length")
    return {
        **_named("Phi3ForCausalLM", "phi3"),
        "partial_rotary_factor": share,
        "sliding_window": header.fact("attention.sliding_window") or None,
        key: original or known["max_position_embeddings"],
    }


def _starcoder2(header: GgufHeader, known: Facts) -> Facts:
    return {
        **_named("Starcoder2ForCausalLM", "starcoder2"),
        "norm_epsilon": header.fact("attention.layer_norm_epsilon") or 1e-5,
        "use_bias": "blk.0.attn_q.bias" in header.tensors,
        "sliding_window": header.fact("attention.sliding_window") or None,
    }


def _gpt2(header: GgufHeader, known: Facts) -> Facts:
    return {
        **_named("GPT2LMHeadModel", "gpt2"),
        "n_positions": known["max_position_embeddings"],
        "n_embd": known["hidden_size"],
        "n_layer": known["num_hidden_layers"],
        "n_head": known["num_attention_heads"],
        "n_inner": known.get("intermediate_size"),
        "layer_norm_epsilon": header.fact("attention.layer_norm_epsilon") or 1e-5,
        "activation_function": "gelu_new",
    }


def _falcon(header: GgufHeader, known: Facts) -> Facts:
    if known["num_key_value_heads"] != 1:
        raise Unsupported(
            f"{header.path}: of Falcon's GGUF files only those with one KV head, as 7B has, can "
            "be read",
            hint="give the folder that the file was made from",
        )
    return {
        **_named("FalconForCausalLM", "falcon"),
        "ffn_hidden_size": known.get("intermediate_size"),
        "layer_norm_epsilon": header.fact("attention.layer_norm_epsilon") or 1e-5,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "bias": False,
        "alibi": False,
    }


def _named(architecture: str, kind: str) -> Facts:
    return {"architectures": [architecture], "model_type": kind}


_OF: Mapping[str, Callable[[GgufHeader, Facts], Facts]] = {
    "llama": _llama,
    "qwen2": lambda header, known: _named("Qwen2ForCausalLM", "qwen2"),
    "qwen2moe": _qwen2_moe,
    "qwen3": lambda header, known: _named("Qwen3ForCausalLM", "qwen3"),
    "gemma2": _gemma2,
    "phi3": _phi3,
    "starcoder2": _starcoder2,
    "gpt2": _gpt2,
    "falcon": _falcon,
}
