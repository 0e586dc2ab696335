"""Medusa heads for vLLM: every tensor under the name that vLLM's own class loads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from specpipe.checkpoint.convert import read_model
from specpipe.checkpoint.medusa import open_heads
from specpipe.checkpoint.source import open_source
from specpipe.checkpoint.vllm_heads import write_vllm_heads


@pytest.mark.parametrize("own_output", [False, True])
def test_the_folder_has_what_vllms_class_declares(
    own_output: bool, tiny: Path, tmp_path: Path
) -> None:
    """The names are those of `Medusa.__init__` (vllm/model_executor/models/medusa.py)."""
    source = open_source(tiny)
    model = read_model(source, "float32")
    hidden, vocab = model.hidden_size, model.vocab_size
    given = {}
    for head in range(2):
        given[f"{head}.0.linear.weight"] = torch.randn(hidden, hidden)
        given[f"{head}.0.linear.bias"] = torch.randn(hidden)
        if own_output:
            given[f"{head}.1.weight"] = torch.randn(vocab, hidden)
    given["token_map"] = torch.arange(vocab).flip(0).int()  # vLLM reads none
    save_file(given, tmp_path / "medusa_lm_head.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    write_vllm_heads(open_heads(tmp_path), source, model, out)
    written = load_file(out / "model.safetensors")
    for head in range(2):
        for part in ("weight", "bias"):
            ours = written.pop(f"blocks.{head}.layers.0.{part}")
            assert torch.equal(ours, given[f"{head}.0.linear.{part}"])
        if own_output:
            assert torch.equal(written.pop(f"lm_heads.{head}.weight"), given[f"{head}.1.weight"])
    if not own_output:
        whole = load_file(tiny / "model.safetensors")
        table = whole.get("lm_head.weight", whole["model.embed_tokens.weight"])
        assert torch.equal(written.pop("lm_head.weight"), table)
    assert written == {}
    config = json.loads((out / "config.json").read_text())
    assert config["original_lm_head"] is not own_output and config["medusa_fc_bias"] is True
    assert (config["num_heads"], config["hidden_size"]) == (2, hidden)
