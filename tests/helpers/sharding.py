"""Shards a tensor and merges the shards of all ranks again, the simple way."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from specpipe.checkpoint.convert import effective
from specpipe.checkpoint.families import TensorPlan, find_family, read_facts
from specpipe.checkpoint.shard import Cut, cut, local_name, ranks
from specpipe.checkpoint.source import Source, read_tensors
from specpipe.checkpoint.transfer import write_tensors
from specpipe.core.divisibility import Parallel
from specpipe.core.model import ModelConfig

Files = list[dict[str, torch.Tensor]]


def take(tensor: torch.Tensor, part: Cut) -> torch.Tensor:
    """Return the shard that a cut describes, by index, with zeros for padding."""
    for dim, ranges in enumerate(part.ranges):
        index = torch.tensor([i for begin, end in ranges for i in range(begin, end)])
        missing = max(int(index.max()) + 1 - tensor.shape[dim], 0)
        if missing:
            zeros = torch.zeros(missing, *tensor.shape[1:], dtype=tensor.dtype)
            tensor = torch.cat([tensor, zeros])
        tensor = tensor.index_select(dim, index)
    return tensor


def put(whole: torch.Tensor, seen: torch.Tensor, part: Cut, held: torch.Tensor) -> None:
    """Put a rank's part where it belongs; what two ranks hold must be equal, padding zero."""
    grid = [[i for begin, end in ranges for i in range(begin, end)] for ranges in part.ranges]
    real = sum(i < whole.shape[0] for i in grid[0])
    assert not held[real:].any(), "padding holds something else than zeros"
    if not real:
        return
    at = torch.meshgrid(*(torch.tensor(g) for g in [grid[0][:real], *grid[1:]]), indexing="ij")
    value = held[:real]
    assert torch.equal(whole[at][seen[at]], value[seen[at]]), "two ranks differ"
    whole[at] = value
    seen[at] = True


def merge(
    plans: list[TensorPlan], model: ModelConfig, parallel: Parallel, files: Files
) -> dict[str, torch.Tensor]:
    """Return the whole tensors that the files of all ranks hold, and empty the files."""
    merged = {}
    for plan in plans:
        whole, seen = torch.zeros(plan.shape), torch.zeros(plan.shape, dtype=torch.bool)
        for rank in ranks(parallel):
            name = local_name(plan, rank, model)
            if name is not None:
                held = files[rank.index].pop(name)
                whole = whole.to(held.dtype)
                put(whole, seen, cut(plan, rank, model), held)
        assert seen.all(), f"no rank holds all of {plan.name}"
        merged[plan.name] = whole
    return merged


def read_ranks(out: Path) -> Files:
    """Return the tensors of every rank's file, in order."""
    files = sorted(out.glob("rank*.safetensors"), key=lambda file: int(file.stem[4:]))
    return [load_file(file) for file in files]


def convert_tensors(source: Source, out: Path, parallel: Parallel) -> Files:
    """Write the rank files of a model, without what goes with them, and return their tensors."""
    out.mkdir()
    family = find_family(source.hf_config)
    model = read_facts(source.hf_config, "float32")
    with read_tensors(source.weights) as reader:
        work = [(reader, plan) for plan in family.tensors(model)]
        write_tensors(work, model, effective(parallel, family), out, lambda done, total: None)
    return read_ranks(out)
