"""Every family in the table: converted, run through the CPU engine, logits as in transformers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from specpipe.checkpoint.families import FAMILIES
from specpipe.contracts import ROOT, Draft, Verdict, chain
from specpipe.engine.openvino.backend import OpenVinoEngine
from tests.families import WORLDS, make_family

CASES = [(name, variant) for name, world in WORLDS.items() for variant in world.variants]
TREE = [ROOT, 0, ROOT, 1, 0]  # parents of five nodes
TOLERANCE = 1e-3

Logits = Callable[[list[int]], np.ndarray]


def test_every_family_has_a_model_here() -> None:
    assert set(WORLDS) == set(FAMILIES)


def reference(folder: Path) -> Logits:
    """Return a function from a sequence to transformers' logits of all its places.

    Other attention than "eager" may leave soft caps out, as transformers 4 does.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model = model.float().eval()

    def logits(sequence: list[int]) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor([sequence]), use_cache=False).logits[0].numpy()

    return logits


@pytest.fixture(scope="module")
def case(request, tmp_path_factory, make_engine) -> tuple[OpenVinoEngine, Logits]:
    name, variant = request.param
    folder = make_family(tmp_path_factory.mktemp("family") / "model", name, variant)
    expected = reference(folder)
    if WORLDS[name].rewrite:
        WORLDS[name].rewrite(folder)
    return make_engine(folder), expected


@pytest.mark.parametrize("case", CASES, indirect=True, ids=" ".join)
def test_logits_are_those_of_transformers(case) -> None:
    engine, expected = case
    sequence = np.random.default_rng(0).integers(3, engine.vocab_size, 110).tolist()
    wanted = expected(sequence)
    runner = engine.runner()
    runner.start(sequence[:90])  # crosses a block of the cache
    for begin in range(89, 110, 4):
        runner.follow(sequence[: begin + 1])
        logits = runner.score(chain(sequence[begin + 1 : begin + 4])).logits
        assert np.abs(logits - wanted[begin : begin + len(logits)]).max() < TOLERANCE


@pytest.mark.parametrize("case", CASES, indirect=True, ids=" ".join)
def test_logits_of_a_tree_are_those_of_its_paths(case) -> None:
    engine, expected = case
    *prompt, a, b, c, d, e = np.random.default_rng(1).integers(3, engine.vocab_size, 35).tolist()
    draft = Draft(np.array([a, b, c, d, e]), np.array(TREE))
    runner = engine.runner(len(TREE) + 1)
    runner.start(prompt)
    paths = [[], [a], [a, b], [c], [a, b, d], [a, e]]
    wanted = [expected([*prompt, *path])[-1] for path in paths]
    assert np.abs(runner.score(draft).logits - wanted).max() < TOLERANCE
    runner.commit(draft, Verdict((0, 4), c))  # keeps rows that do not follow each other
    after = runner.score(chain([d])).logits
    assert np.abs(after - expected([*prompt, a, e, c, d])[-2:]).max() < TOLERANCE
