"""The lower bound of the weights of an architecture that is not known here."""

from typing import Any

import pytest

from specpipe.checkpoint.least_weights import least_bytes
from specpipe.checkpoint.source import known_model

DENSE: dict[str, Any] = {
    "hidden_size": 8, "num_hidden_layers": 3, "intermediate_size": 16, "vocab_size": 100,
}  # fmt: skip
EXPERTS = DENSE | {"num_experts": 4, "moe_intermediate_size": 2, "hidden_act": "silu"}


def test_it_is_just_below_the_published_size_of_deepseek_v3() -> None:
    facts = known_model("deepseek-ai/DeepSeek-V3") or {}
    found = least_bytes(facts, facts["quantization_config"])
    assert 0.97 < found / 671e9 < 1


@pytest.mark.parametrize(
    ("text", "quantization", "expected"),
    [
        (DENSE, None, 2 * 8 * (100 + 3 * 3 * 8)),
        (DENSE, {"quant_method": "fp8"}, 8 * (100 + 3 * 3 * 8)),
        (DENSE, {"quant_method": "gptq", "bits": 8}, 8 * (100 + 3 * 3 * 8)),
        (DENSE, {"quant_method": "compressed-tensors"}, 4 * (100 + 3 * 3 * 8)),
        (DENSE | {"expert_dtype": "fp4"}, {"quant_method": "fp8"}, 4 * (100 + 3 * 3 * 8)),
        (DENSE, {"quant_method": "fp8", "config_groups": {"0": {}}}, 4 * (100 + 3 * 3 * 8)),
        (EXPERTS | {"moe_latent_size": 4}, None, 2 * 8 * 100),
        (DENSE, True, 4 * (100 + 3 * 3 * 8)),
        (EXPERTS, None, 2 * 8 * (100 + 3 * 3 * 4 * 2)),
        (EXPERTS | {"hidden_act": "relu2"}, None, 2 * 8 * (100 + 2 * 3 * 4 * 2)),
        (EXPERTS | {"first_k_dense_replace": 1}, None, 2 * 8 * (100 + 3 * 2 * 4 * 2)),
        (EXPERTS | {"decoder_sparse_step": 2}, None, 2 * 8 * (100 + 3 * 1 * 4 * 2)),
        (EXPERTS | {"moe_layer_freq": [0, 1, 1]}, None, 2 * 8 * 100),
        (DENSE | {"layers_block_type": ["mamba"]}, None, 2 * 8 * 100),
        (DENSE | {"intermediate_size": [1, 2, 3]}, None, 2 * 8 * 100),
        (DENSE | {"hidden_size": "8"}, None, 0),
        ({}, None, 0),
    ],
)
def test_only_what_is_certain_is_counted(
    text: dict[str, Any], quantization: Any, expected: int
) -> None:
    assert least_bytes(text, quantization) == expected
