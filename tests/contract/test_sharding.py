"""Every family is sharded for every valid deployment; the merged ranks equal the model."""

from pathlib import Path

import pytest
import torch

from specpipe.checkpoint.convert import effective
from specpipe.checkpoint.families import FAMILIES, find_family, read_facts
from specpipe.checkpoint.source import Source, open_source
from specpipe.core.divisibility import ONE_RANK, Parallel, check_parallel
from tests.helpers.families import WORLDS, make_family
from tests.helpers.sharding import convert_tensors, merge

CASES = [(name, variant) for name, world in WORLDS.items() for variant in world.variants]
LAYOUTS = [
    Parallel(4, 1, 1, True, 0),
    Parallel(2, 2, 2, True, 1),
    Parallel(4, 2, 2),
    Parallel(2, 2),
]


@pytest.fixture(scope="module")
def source(request, tmp_path_factory: pytest.TempPathFactory) -> Source:
    name, variant = request.param
    folder = make_family(tmp_path_factory.mktemp("family") / "model", name, variant)
    if WORLDS[name].rewrite:
        WORLDS[name].rewrite(folder)
    return open_source(folder)


def test_every_family_is_cut() -> None:
    assert {name for name, _ in CASES} == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("source", CASES, indirect=True, ids=" ".join)
def test_merged_ranks_are_the_model(source: Source, tmp_path: Path) -> None:
    family = find_family(source.hf_config)
    model = read_facts(source.hf_config, "float32")
    plans = family.tensors(model)
    (expected,) = convert_tensors(source, tmp_path / "whole", ONE_RANK)
    layouts = [p for p in LAYOUTS if not check_parallel(model, p, "model")]
    assert any(p.tp_size > 1 for p in layouts) and any(p.pp_size > 1 for p in layouts)
    assert any(p.moe_ep_size > 1 for p in layouts) == (model.moe is not None)
    for number, layout in enumerate(layouts):
        files = convert_tensors(source, tmp_path / str(number), layout)
        merged = merge(plans, model, effective(layout, family), files)
        assert merged.keys() == expected.keys()
        assert all(torch.equal(merged[n], expected[n]) for n in merged), layout
        assert not any(files), f"{layout}: tensors that no plan names"
