"""A ReDrafter in the CPU engine: upstream's arithmetic, and proposers that drive it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import silu

from specpipe.assembly import make_proposer
from specpipe.contracts import EMPTY, Sampling
from specpipe.engine.openvino.backend import OpenVinoEngine
from specpipe.errors import Unsupported
from specpipe.methods import DrafterOptions, Hybrid, ReDrafter, Speculation
from specpipe.speculate.decode import Limits, decode
from specpipe.speculate.none import NoProposer
from specpipe.trees import WIDTH
from tests.models import make_redrafter

PROMPT = [5, 9, 40, 41, 42, 9, 40]
KINDS = {
    "Apple's": {},
    "projected": {"exit_dim": 96, "layers": 1},
    "summed": {"rnn": False},
    "shared output": {"exit_dim": 64, "own_output": False},
}


def expected(folder: Path, table: torch.Tensor, hidden: np.ndarray, path: list[int]) -> np.ndarray:
    """Return the probabilities [V] that upstream's formula gives behind a path of tokens."""
    parts = load_file(folder / "model.safetensors")
    recurrent = "rnn_u.weight" in parts
    state = parts["rnn_w.weight"] @ table[path[0]] if recurrent else table[path[0]]
    for token in path[1:]:
        if recurrent:
            kept = parts["rnn_u.weight"] @ state + parts["rnn_u.bias"]
            state = kept + parts["rnn_w.weight"] @ table[token]
        else:
            state = state + table[token]
    x = torch.cat([torch.from_numpy(hidden), state])
    if "input_proj.weight" in parts:
        x = parts["input_proj.weight"] @ x + parts["input_proj.bias"]
    layers = sum(name.endswith("linear.weight") for name in parts)
    for layer in range(layers):
        at = f"lm_head.{layer}.linear"
        x = x + silu(parts[f"{at}.weight"] @ x + parts[f"{at}.bias"])
    return torch.softmax(parts.get(f"lm_head.{layers}.weight", table) @ x, -1).numpy()


def hidden_of(engine: OpenVinoEngine) -> np.ndarray:
    runner = engine.runner()
    runner.start(PROMPT)
    return runner.score(EMPTY).hidden[0].copy()


@pytest.mark.parametrize("kind", KINDS)
def test_guesses_behind_every_path_are_those_of_the_formula(
    kind: str, tiny: Path, make_engine, tmp_path: Path
) -> None:
    make_redrafter(tmp_path, seed=5, **KINDS[kind])
    engine = make_engine(tiny, redrafter=tmp_path)
    table = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"].float()
    hidden, runner = hidden_of(engine), engine.runner()
    first = runner.extend(hidden, np.zeros((1, 64), np.float32), np.array([7]))
    children = np.array([3, 200])
    second = runner.extend(hidden, np.repeat(first.states, 2, 0), children)
    for found, paths in ((first, [[7]]), (second, [[7, 3], [7, 200]])):
        assert found.tokens.shape == found.probs.shape == (len(paths), WIDTH)
        for path, tokens, given in zip(paths, found.tokens, found.probs, strict=True):
            row = expected(tmp_path, table, hidden, path)
            # The output layer is kept in 8 bits: near-ties may change places, no more.
            np.testing.assert_allclose(given, row[tokens], atol=0.03)
            np.testing.assert_allclose(row[tokens], np.sort(row)[::-1][:WIDTH], atol=0.03)


def test_it_guesses_the_first_tokens_alone_if_told_to(
    tiny: Path, make_engine, tmp_path: Path
) -> None:
    make_redrafter(tmp_path, seed=5)
    engine = make_engine(tiny, redrafter=tmp_path, guess_vocabulary=64)
    found = engine.runner().extend(hidden_of(engine), np.zeros((1, 64), np.float32), np.array([7]))
    assert found.tokens.max() < 64 and found.probs.sum() <= 1.001


@pytest.mark.parametrize(
    "options",
    [
        ReDrafter("redrafter", "", 1, 4),
        ReDrafter("redrafter", "", 3, 3),
        Hybrid("hybrid", None, 6, 1, 3, redrafter=DrafterOptions("", 2, 3)),
    ],
    ids=["one beam", "beams", "hybrid"],
)
@pytest.mark.parametrize("share", [True, False])
def test_greedy_output_equals_plain_decoding(
    options: Speculation, share: bool, tiny: Path, make_engine, tmp_path: Path
) -> None:
    make_redrafter(tmp_path, seed=6, exit_dim=64, own_output=not share)
    engine = make_engine(tiny, redrafter=tmp_path)

    def answer(proposer) -> list[list[int]]:
        steps = decode(engine.runner(), proposer, PROMPT, Sampling(), Limits(40))
        return [list(step.tokens) for step in steps]

    plain = answer(NoProposer())
    fast = answer(make_proposer(options, {"target": engine.runner()}))
    assert [t for step in fast for t in step] == [t for step in plain for t in step]


def test_an_engine_without_one_says_so(tiny_engine: OpenVinoEngine) -> None:
    with pytest.raises(Unsupported, match="this engine has no ReDrafter"):
        tiny_engine.runner().extend(
            np.zeros(64, np.float32), np.zeros((1, 64), np.float32), np.array([1])
        )
