"""`scripts/judge-drafters`: what it counts is what the trainer's judge counts."""

import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from specpipe.train.frozen import judge
from specpipe.train.target import Target
from tests.helpers.models import make_heads, make_redrafter

PROMPTS = ["Who jumps?", "And the box?", "What do zebras do?"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend("scripts")
    loader = SourceFileLoader("judge_drafters", "scripts/judge-drafters")
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["heads", "redrafter"])
def test_shares_are_those_of_the_trainers_judge(
    kind: str, script: ModuleType, target: Target, tmp_path: Path
) -> None:
    order = np.random.default_rng(3).permutation(320).tolist()
    if kind == "heads":
        make_heads(tmp_path, seed=4, heads=4, token_map=order)
    else:
        make_redrafter(tmp_path, seed=4, exit_dim=64, own_output=False, token_map=order)
    places = script.answered(target, PROMPTS, 24, tmp_path)
    assert len(places) > 10
    net, ranked = script.load_drafter(tmp_path, target)
    assert ranked.tolist() == order
    measures = judge(net, target.output, places).measures
    expected = [measures[f"acceptance at depth {n}"] for n in range(1, 5)]
    np.testing.assert_allclose(script.judged(tmp_path, target, places, 0), expected, atol=1e-6)
    np.testing.assert_allclose(script.judged(tmp_path, target, places, 320), expected, atol=1e-6)


def test_a_token_outside_of_the_drafted_ones_is_wrong(
    script: ModuleType, target: Target, tmp_path: Path
) -> None:
    places = script.answered(target, PROMPTS, 24, tmp_path)
    first = np.unique(places.spoken[:, 1]).tolist()
    others = [token for token in range(320) if token not in first]
    make_heads(tmp_path, seed=4, heads=4, token_map=others + first)
    assert script.judged(tmp_path, target, places, len(others)) == [0.0] * 4
