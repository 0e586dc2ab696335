"""Targets with Medusa heads for TensorRT-LLM: which can be built, and the sentence for the rest."""

from dataclasses import replace

import pytest

from specpipe.core.divisibility import Parallel
from specpipe.core.model import ModelConfig
from specpipe.engine.tensorrt.medusa import BASES, check_medusa
from tests.helpers.build_requests import build_request

LLAMA = ModelConfig(
    "LlamaForCausalLM", "float16", hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_size=16, intermediate_size=128, vocab_size=320,
    max_position_embeddings=256, norm_epsilon=1e-6, rotary_base=1e4, num_medusa_heads=3,
    num_medusa_layers=1,
)  # fmt: skip


def said(model: ModelConfig, tp_size: int = 1) -> str:
    request = build_request(
        model, dtype="float16", method="medusa", draft_nodes=7, max_batch_size=4,
        max_input_len=100, max_seq_len=200, gpu="L4", parallel=Parallel(tp_size),
    )  # fmt: skip
    return " | ".join(str(rejection) for rejection in check_medusa(request))


@pytest.mark.parametrize("architecture", BASES)
def test_the_bases_of_upstreams_medusa_model_are_fine(architecture: str) -> None:
    assert said(replace(LLAMA, architecture=architecture), tp_size=4) == ""


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("GemmaForCausalLM", "cannot be built on GemmaForCausalLM, only on LlamaForCausalLM"),
        ("MixtralForCausalLM", "would halve the width of the heads"),
    ],
)
def test_another_base_is_refused_with_what_would_do(architecture: str, words: str) -> None:
    text = said(replace(LLAMA, architecture=architecture))
    assert words in text and "use method: draft_model or lookahead" in text


def test_without_heads_any_base_is_fine() -> None:
    model = replace(LLAMA, architecture="GemmaForCausalLM", num_medusa_heads=0)
    assert said(model, tp_size=3) == ""
