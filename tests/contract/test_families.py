"""Every family in the table: converted, run through the CPU engine, logits as in transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from specpipe.checkpoint.families import FAMILIES
from specpipe.contracts import chain
from tests.models import make_llama

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "LlamaForCausalLM": [
        {},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 4},  # as many KV heads as heads, like Llama 2 and Vicuna
        {"num_key_value_heads": 1},
        {"head_dim": 32},  # heads wider than hidden / heads
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ],
}
MAKERS = {"LlamaForCausalLM": make_llama}
CASES = [(name, i) for name in VARIANTS for i in range(len(VARIANTS[name]))]


def test_every_family_has_a_model_here() -> None:
    assert set(VARIANTS) == set(MAKERS) == set(FAMILIES)


def expected_logits(folder: Path, sequence: list[int]) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    with torch.no_grad():
        return model(torch.tensor([sequence])).logits[0].numpy()


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_logits_are_those_of_transformers(
    name: str, variant: int, tmp_path: Path, make_engine
) -> None:
    folder = MAKERS[name](tmp_path / "model", seed=3, **VARIANTS[name][variant])
    engine = make_engine(folder)
    sequence = np.random.default_rng(0).integers(3, engine.vocab_size, 150).tolist()
    expected = expected_logits(folder, sequence)
    runner = engine.runner()
    runner.start(sequence[:100])  # crosses a block of the cache
    worst = 0.0
    for begin in range(99, 150, 4):
        runner.follow(sequence[: begin + 1])
        logits = runner.score(chain(sequence[begin + 1 : begin + 4])).logits
        worst = max(worst, float(np.abs(logits - expected[begin : begin + len(logits)]).max()))
    assert worst < 1e-3
