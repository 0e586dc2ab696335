"""specpipe's tensors equal those of an independent exporter: NVIDIA Model-Optimizer 0.47.

What it wrote of the models in `tests.helpers.modelopt` is kept in tests/data/modelopt.json, which
`scripts/compare-modelopt --facts` writes; the exporter itself is not needed here.
"""

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.modelopt import MODELS, convert, fact, write_model

FACTS = json.loads((Path(__file__).parents[1] / "data/modelopt.json").read_text())


def known_defect(name: str, tensor: str) -> bool:
    """Tell whether the peer is known to write a tensor wrongly, see docs/conversion.md."""
    if name == "gemma":
        return tensor == "lm_head.weight"  # left out, on stages without the embedding too
    return name == "phi3" and tensor.endswith("mlp.fc.weight")  # its halves are not cut


@pytest.mark.parametrize("case", FACTS)
def test_tensors_are_those_that_model_optimizer_writes(case: str, tmp_path: Path) -> None:
    name, _, layout = case.rpartition(" ")
    tp, pp = map(int, layout.split("x"))
    ours, _ = convert(write_model(tmp_path / "model", name), tmp_path / "out", tp, pp)
    theirs = FACTS[case]
    assert len(ours) == len(theirs) == tp * pp
    for our_rank, their_rank in zip(ours, theirs, strict=True):
        said = {n: fact(t) for n, t in our_rank.items() if not known_defect(name, n)}
        assert said == {n: f for n, f in their_rank.items() if not known_defect(name, n)}


def mlp(fc: torch.Tensor, proj: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Compute upstream's `MLP` with `swiglu`: the second half of its own rows is the gate."""
    linear, gate = (x @ fc.T).chunk(2, -1)
    return (linear * torch.nn.functional.silu(gate)) @ proj.T


def test_a_fused_mlp_is_only_right_if_both_halves_are_cut(tmp_path: Path) -> None:
    """The ranks' outputs, summed as TensorRT-LLM sums them; the peer cuts the rows in a row."""
    source = write_model(tmp_path / "model", "phi3")
    (whole,), _ = convert(source, tmp_path / "1", 1, 1)
    ranks, _ = convert(source, tmp_path / "2", 2, 1)
    fc, proj = (f"transformer.layers.0.mlp.{name}.weight" for name in ("fc", "proj"))
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    expected = mlp(whole[fc].float(), whole[proj].float(), x)
    ours = sum(mlp(rank[fc].float(), rank[proj].float(), x) for rank in ranks)
    halves = whole[fc].chunk(2)
    peers = sum(mlp(h.float(), r[proj].float(), x) for h, r in zip(halves, ranks, strict=True))
    assert torch.allclose(ours, expected, atol=1e-4)
    assert not torch.allclose(peers, expected, atol=1e-1)
    assert [fact(half) for half in halves] == [
        rank[fc] for rank in [FACTS["phi3 2x2"][0], FACTS["phi3 2x2"][1]]
    ]


def test_every_model_is_compared() -> None:
    assert {case.rpartition(" ")[0] for case in FACTS} == set(MODELS)
    assert all(len(rank) >= 7 for case in FACTS.values() for rank in case)
