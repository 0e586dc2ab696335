"""Engines against their plan: a config.json that upstream's own builder wrote, on a GPU.

Of a Qwen2 engine in bfloat16, built by release 0.17.0.post1 and published in the notes of
ai-bot-pro/achatbot (src/llm/trtllm/tts_spark); the keys that are compared, with their values.
"""

from typing import Any

import pytest

from specpipe.engine.tensorrt.built import compare

RELEASE = "0.17.0.post1"
MODEL: dict[str, Any] = {
    "architecture": "Qwen2ForCausalLM", "dtype": "bfloat16", "vocab_size": 166000,
    "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "mapping": {"world_size": 1, "cp_size": 1, "tp_size": 1, "pp_size": 1},
    "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
}  # fmt: skip
PLUGINS = {
    "gpt_attention_plugin": "auto", "gemm_plugin": "bfloat16", "nccl_plugin": None,
    "context_fmha": True, "paged_kv_cache": True, "remove_input_padding": True,
    "tokens_per_block": 64, "use_paged_context_fmha": False, "use_fp8_context_fmha": False,
}  # fmt: skip
BUILT = {
    "version": RELEASE,
    "pretrained_config": {**MODEL, "logits_dtype": "float32"},
    "build_config": {
        "max_input_len": 1024, "max_seq_len": 32768, "max_batch_size": 16, "max_beam_width": 1,
        "max_num_tokens": 32768, "kv_cache_type": "PAGED", "max_draft_len": 0,
        "speculative_decoding_mode": 1, "plugin_config": PLUGINS,
    },
}  # fmt: skip
FLAGS = {
    "--max_batch_size": "16", "--max_input_len": "1024", "--max_seq_len": "32768",
    "--max_num_tokens": "32768", "--max_beam_width": "1", "--kv_cache_type": "paged",
    "--gemm_plugin": "bfloat16", "--context_fmha": "enable", "--remove_input_padding": "enable",
    "--tokens_per_block": "64", "--use_paged_context_fmha": "disable",
    "--use_fp8_context_fmha": "disable", "--logits_dtype": "float32",
}  # fmt: skip


def test_an_engine_of_upstream_differs_in_nothing_from_the_flags_that_it_was_built_with() -> None:
    assert compare(FLAGS, MODEL, BUILT, RELEASE) == []


@pytest.mark.parametrize(
    ("flag", "value", "key"),
    [
        ("--max_batch_size", "8", "max_batch_size"),
        ("--kv_cache_type", "continuous", "kv_cache_type"),
        ("--gemm_plugin", "disable", "plugin_config.gemm_plugin"),
        ("--tokens_per_block", "32", "plugin_config.tokens_per_block"),
        ("--use_paged_context_fmha", "enable", "plugin_config.use_paged_context_fmha"),
        ("--speculative_decoding_mode", "medusa", "speculative_decoding_mode"),
        ("--max_num_tokens", "65536", "max_num_tokens"),
        ("--logits_dtype", "float16", "logits_dtype"),
    ],
)
def test_every_flag_is_found_where_upstream_writes_it(flag: str, value: str, key: str) -> None:
    found = compare({**FLAGS, flag: value}, MODEL, BUILT, RELEASE)
    assert [difference.key for difference in found] == [key]
