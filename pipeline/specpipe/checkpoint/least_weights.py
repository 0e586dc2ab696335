"""The bytes that weights take at least, by the config.json of an architecture not known here.

It counts the embedding, and matrices of MLPs and experts where their sizes are spelt as in most
configs. Attention, norms and everything else is left out, so the model is never smaller.
"""

from fractions import Fraction
from typing import Any

from specpipe.checkpoint.families import HfConfig
from specpipe.checkpoint.families.keys import MOST, is_whole

_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
_EXPERT_SIZES = ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
_STEPS = ("moe_layer_freq", "moe_layer_frequency", "decoder_sparse_step",
          "interleave_moe_layer_step", "expert_layer_period", "moe_every_n_layers")  # fmt: skip
_DENSE = ("first_k_dense_replace", "num_dense_layers", "n_dense_layers", "moe_layer_start_index",
          "moe_start_layer_index", "moe_layer_num_skipped")  # fmt: skip
# Keys of models whose layers differ in kind or size, or share weights.
_UNEVEN = ("layers_block_type", "hybrid_override_pattern", "hybrid_layer_ids", "block_types",
           "_block_types", "block_configs", "num_mem_blocks", "num_hidden_groups",
           "mlp_only_layers", "moe_layers", "moe_layers_enum", "moe_layer_end_index",
           "expert_layer_offset", "routed_expert_hidden_size", "moe_latent_size")  # fmt: skip
_BITS = {"fp8": 8, "fbgemm_fp8": 8, "mxfp4": 4, "gptq": 4, "awq": 4}
_FEWEST = 4  # bits of formats that are not known here


def least_bytes(text: HfConfig, quantization: Any) -> int:
    """Return a lower bound of the weights' bytes; 0 if nothing is known.

    `text` is the config of a text model, `quantization` the whole config's description of formats.
    """
    hidden, layers = _size(text, "hidden_size"), _size(text, "num_hidden_layers")
    tables = _size(text, "vocab_size") * hidden
    rows = 0 if _is_uneven(text) else _rows(text, layers)
    return int((tables + rows * hidden) * Fraction(_bits(text, quantization), 8))


def _is_uneven(text: HfConfig) -> bool:
    lists = any(isinstance(text.get(key), list) for key in (*_EXPERTS, *_EXPERT_SIZES, *_STEPS))
    return lists or any(text.get(key) for key in _UNEVEN)


def _rows(text: HfConfig, layers: int) -> int:
    """Return the rows of all MLPs of the width of the hidden states.

    Some configs count both halves of a gated MLP in `intermediate_size`: three halves are certain.
    Experts have two matrices where they may have no gate.
    """
    experts = next((n for key in _EXPERTS if (n := _size(text, key))), 0)
    if not experts:
        return 3 * layers * _size(text, "intermediate_size") // 2
    step = max(1, *(_size(text, key) for key in _STEPS))
    sparse = max(0, layers - max(_size(text, key) for key in _DENSE)) // step
    size = next((n for key in _EXPERT_SIZES if (n := _size(text, key))), 0)
    matrices = 3 if text.get("hidden_act") == "silu" else 2
    return matrices * sparse * experts * size


def _bits(text: HfConfig, quantization: Any) -> int:
    """Return the bits of most weights; the fewest where experts or groups have their own."""
    if not quantization:
        return 16
    described = quantization if isinstance(quantization, dict) else {}
    if described.get("config_groups") or text.get("expert_dtype"):
        return _FEWEST
    bits = described.get("bits")
    return bits if bits in (2, 3, 4, 8) else _BITS.get(str(described.get("quant_method")), _FEWEST)


def _size(text: HfConfig, key: str) -> int:
    value = text.get(key)
    return value if is_whole(value) and 0 < value <= MOST else 0
