"""Tiny GGUF files of tiny models, written as llama.cpp's converter writes them.

Names are those of the `gguf` package's own table; what the converter does to tensors is done here
from its description (convert_hf_to_gguf.py), not with specpipe's reader.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ARCHITECTURES = {  # Hugging Face's class -> llama.cpp's name
    "LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen2MoeForCausalLM": "qwen2moe",
    "Qwen3ForCausalLM": "qwen3", "Gemma2ForCausalLM": "gemma2", "Phi3ForCausalLM": "phi3",
    "Starcoder2ForCausalLM": "starcoder2", "GPT2LMHeadModel": "gpt2", "FalconForCausalLM": "falcon",
}  # fmt: skip
_PADDING, _CONTROL, _NORMAL = 5, 3, 1  # types of tokens


def make_gguf(
    path: Path, folder: Path, *, kind: str = "F32", change: Callable[[Any], None] | None = None
) -> Path:
    """Write the model of a Hugging Face folder as one GGUF file, its matrices in ggml's `kind`.

    `change` gets the open writer before the tensors are written.
    """
    from gguf import GGUFWriter

    config = json.loads((folder / "config.json").read_text())
    arch = ARCHITECTURES[config["architectures"][0]]
    writer = GGUFWriter(path, arch)
    _add_sizes(writer, config)
    _add_tokenizer(writer, folder, config["vocab_size"])
    for name, tensor in _tensors(folder, config, arch).items():
        _add(writer, name, np.ascontiguousarray(tensor.squeeze()), kind)
    if change:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_sizes(writer: Any, config: Mapping[str, Any]) -> None:
    def of(*keys: str) -> Any:
        return next((config[key] for key in keys if config.get(key) is not None), None)

    heads, hidden = of("num_attention_heads", "n_head"), of("hidden_size", "n_embd")
    falcon = config["model_type"] == "falcon"
    writer.add_context_length(of("max_position_embeddings", "n_positions"))
    writer.add_block_count(of("num_hidden_layers", "n_layer"))
    writer.add_embedding_length(hidden)
    inner = of("intermediate_size", "n_inner", "ffn_hidden_size") or 4 * hidden
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(1 if falcon else of("num_key_value_heads") or heads)
    if size := of("head_dim"):
        writer.add_key_length(size)
        writer.add_value_length(size)
    if epsilon := of("rms_norm_eps"):
        writer.add_layer_norm_rms_eps(epsilon)
    if epsilon := of("layer_norm_epsilon", "norm_epsilon"):
        writer.add_layer_norm_eps(epsilon)
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "sliding_window"):
        if of(key):
            getattr(writer, f"add_{key}")(of(key))
    if of("num_experts"):
        writer.add_expert_count(of("num_experts"))
        writer.add_expert_used_count(of("num_experts_per_tok"))
    _add_rope(
        writer, {**config, **(of("rope_parameters") or {})}, of("head_dim") or hidden // heads
    )


def _add_rope(writer: Any, rope: Mapping[str, Any], size: int) -> None:
    from gguf import RopeScalingType

    scaling = {**rope, **(rope.get("rope_scaling") or {})}
    writer.add_rope_dimension_count(int(size * (rope.get("partial_rotary_factor") or 1)))
    if rope.get("rope_theta"):
        writer.add_rope_freq_base(rope["rope_theta"])
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    if kind == "llama3":
        divisors = np.nextafter(_llama3_divisors(scaling, size), np.float32(np.inf))
        _add(writer, "rope_freqs.weight", divisors, "F32")  # as another CPU rounds them
    if kind == "longrope":
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        for name in ("long", "short"):
            factors = np.array(scaling[f"{name}_factor"], dtype=np.float32)
            _add(writer, f"rope_factors_{name}.weight", factors, "F32")


def _llama3_divisors(scaling: Mapping[str, Any], size: int) -> np.ndarray:
    """Return what Llama 3's rule divides the frequencies by, from transformers' own rule."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    rule = {"rope_type": "llama3", **{key: scaling[key] for key in keys}}
    theta = scaling["rope_theta"]
    config = LlamaConfig(head_dim=size, rope_theta=theta, rope_scaling=rule)
    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].numpy()
    plain = 1.0 / theta ** (np.arange(0, size, 2, dtype=np.float32) / size)
    return (plain / scaled).astype(np.float32)


def _add_tokenizer(writer: Any, folder: Path, rows: int) -> None:
    """Add the tokenizer of the folder; as the converter does, up to the rows of the embedding."""
    held = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = {**held["model"]["vocab"], **{t["content"]: t["id"] for t in held["added_tokens"]}}
    special = {t["content"] for t in held["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = [_CONTROL if token in special else _NORMAL for token in tokens]
    padding = [f"[PAD{index}]" for index in range(len(tokens), rows)]
    merges = [m if isinstance(m, str) else " ".join(m) for m in held["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, *padding])
    writer.add_token_types([*kinds, *[_PADDING for _ in padding]])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(vocabulary["<|end|>"])
    writer.add_bos_token_id(vocabulary["<|user|>"])
    writer.add_add_bos_token(False)
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text())


def _tensors(folder: Path, config: Mapping[str, Any], arch: str) -> dict[str, np.ndarray]:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from safetensors.numpy import load_file

    layers = config.get("num_hidden_layers") or config["n_layer"]
    number = next(key for key, name in MODEL_ARCH_NAMES.items() if name == arch)
    names = get_tensor_name_map(number, layers)
    found: dict[str, Any] = {}
    for theirs, tensor in load_file(folder / "model.safetensors").items():
        name = theirs
        if ".experts." in theirs:
            before, _, after = theirs.partition(".experts.")
            name = f"{before}.experts.{after.partition('.')[2]}"
        ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert ours, f"{theirs} has no name in gguf's table"
        if ".experts." in theirs:
            found.setdefault(ours, {})[int(after.partition(".")[0])] = tensor
        else:
            found[ours] = _changed(ours, tensor, config, arch)
    return {
        name: np.stack([t[e] for e in sorted(t)]) if isinstance(t, dict) else t
        for name, t in found.items()
    }


def _changed(name: str, tensor: np.ndarray, config: Mapping[str, Any], arch: str) -> np.ndarray:
    """Return a tensor as the converter of an architecture writes it."""
    if arch == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = config["num_attention_heads" if ".attn_q." in name else "num_key_value_heads"]
        split = tensor.reshape(heads, 2, len(tensor) // heads // 2, *tensor.shape[1:])
        return split.swapaxes(1, 2).reshape(tensor.shape)
    if arch == "gemma2" and name.endswith("norm.weight"):
        return tensor + 1
    if arch == "gpt2" and name.endswith(
        ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    ):
        return tensor.T
    return tensor


def _add(writer: Any, name: str, tensor: np.ndarray, kind: str) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    number = GGMLQuantizationType[kind if tensor.ndim > 1 else "F32"]
    if number in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        writer.add_tensor(name, tensor.astype(np.float16 if number.name == "F16" else np.float32))
    else:
        writer.add_tensor(name, quantize(tensor.astype(np.float32), number), raw_dtype=number)
