"""What the plugin GPTAttention computes for the prompt of one sequence."""

import sys
from typing import Any

import torch

from upstream_check.enums import LayerType
from upstream_check.network import Plugin

Tensor = torch.Tensor


def attend(
    options: dict[str, Any],
    qkv: Tensor,
    cos_sin: Tensor | None,
    slopes: Tensor | None,
    bias: Tensor | None,
    lengths: Tensor,
) -> Tensor:
    """Return the attended states [tokens, heads * size] of fused queries, keys and values."""
    heads, groups = options["num_heads"], options["num_kv_heads"]
    size, tokens = options["hidden_size_per_head"], qkv.shape[0]
    x = qkv.float() if bias is None else qkv.float() + bias.float()
    assert x.shape[1] == (heads + 2 * groups) * size, (tuple(x.shape), heads, groups, size)
    parts = x.split([heads * size, groups * size, groups * size], 1)
    q, k, v = (part.reshape(tokens, -1, size) for part in parts)
    if options["rotary_embedding_dim"]:
        q, k = (_rotate(t, cos_sin, options) for t in (q, k))
    k, v = (t.repeat_interleave(heads // groups, 1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / (size**0.5 * options["q_scaling"])
    if cap := options["attn_logit_softcapping_scale"]:
        scores = cap * torch.tanh(scores / cap)
    if slopes is not None:
        scores = scores + slopes.float().reshape(heads, 1, 1) * torch.arange(tokens).float()
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    shares = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    out = torch.einsum("hqk,khd->qhd", shares, v)
    return out.reshape(tokens, heads * size).to(qkv.dtype)


def _rotate(t: Tensor, cos_sin: Tensor | None, options: dict[str, Any]) -> Tensor:
    dim, tokens = options["rotary_embedding_dim"], t.shape[0]
    assert cos_sin is not None
    table = cos_sin.float().reshape(-1, dim // 2, 2)[:tokens]
    cos, sin = table[:, None, :, 0], table[:, None, :, 1]
    turned, rest = t[..., :dim], t[..., dim:]
    if "gptj" in str(options["position_embedding_type"]):
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        a, b = turned[..., : dim // 2], turned[..., dim // 2 :]
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return torch.cat([turned, rest], -1)


def install() -> None:
    """Let TensorRT-LLM's layers call `attend`."""
    from tensorrt_llm import functional

    defaults = {
        "attn_logit_softcapping_scale": 0.0, "rotary_embedding_dim": 0, "qkv_bias": None,
        "position_embedding_type": functional.PositionEmbeddingType.learned_absolute,
        "alibi_slopes": None, "rotary_cos_sin": None,
    }  # fmt: skip

    def gpt_attention(**given: Any) -> tuple[Any, None]:
        options = {**defaults, **given}
        if isinstance(options["qkv"], list):
            raise NotImplementedError("queries, keys and values that are not fused")
        names = ("qkv", "rotary_cos_sin", "alibi_slopes", "qkv_bias", "context_lengths")
        inputs = [options[n].trt_tensor if options[n] is not None else None for n in names]
        layer = functional.default_trtnet().add_layer(
            LayerType.PLUGIN_V2, inputs, 1, lambda layer, *data: attend(options, *data)
        )
        layer.plugin = Plugin("GPTAttention", [])
        return functional._create_tensor(layer.get_output(0), layer), None

    for name, module in list(sys.modules.items()):
        if name.startswith("tensorrt_llm") and hasattr(module, "gpt_attention"):
            module.gpt_attention = gpt_attention
