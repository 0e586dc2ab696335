"""The types of config.json's values, which upstream's classes take as they are."""

from collections.abc import Callable, Iterator

from specpipe.checkpoint.families.keys import is_number, is_whole, short
from specpipe.checkpoint.inspection.config import Json, table
from specpipe.checkpoint.inspection.records import InspectionFinding

_CONVERT = "convert the model again"


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


_TYPES: tuple[tuple[tuple[str, ...], Callable[[object], bool], str], ...] = (
    (
        ("architecture", "dtype", "hidden_act", "position_embedding_type", "model_type",
         "logits_dtype", "version", "qwen_type", "gpt_variant"),
        _is_text,
        "a text",
    ),
    (
        ("rotary_base", "norm_epsilon", "rotary_pct", "rotary_emb_base", "query_pre_attn_scalar",
         "attn_logit_softcapping", "final_logit_softcapping", "q_scaling", "embedding_scale"),
        is_number,
        "a number",
    ),
    (
        ("attn_bias", "mlp_bias", "qk_layernorm", "tie_word_embeddings", "use_parallel_embedding",
         "redrafter_is_rnn", "redrafter_greedy_search"),
        _is_flag,
        "true or false",
    ),
    (("rotary_embedding_dim", "embedding_sharding_dim"), is_whole, "a whole number"),
    (
        ("mapping", "quantization", "rotary_scaling", "moe", "eagle_net_config", "arithmetic",
         "eagle3"),
        _is_table,
        "an object",
    ),
)  # fmt: skip
_FACTORS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
            "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")  # fmt: skip


def check_types(raw: Json) -> Iterator[InspectionFinding]:
    """Yield every key that has a value of another type than upstream's classes take."""
    for keys, fits, wanted in _TYPES:
        for key in keys:
            if raw.get(key) is not None and not fits(raw[key]):
                yield _wrong(key, raw[key], wanted)
    for key in _FACTORS:
        value = table(raw, "rotary_scaling").get(key)
        if value is not None and (not is_number(value) or value < 0):
            yield _wrong(f"rotary_scaling.{key}", value, "a number")


def _wrong(key: str, value: object, wanted: str) -> InspectionFinding:
    return InspectionFinding(f"config.json: '{key}' is {short(value)}: must be {wanted}", _CONVERT)
