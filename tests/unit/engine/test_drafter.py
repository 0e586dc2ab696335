"""A ReDrafter in the CPU engine: upstream's arithmetic, for the paths of several sequences."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import silu

from specpipe.core.contracts import Extensions
from specpipe.core.engines import LoadedEngine
from specpipe.core.errors import Unsupported
from specpipe.core.trees import WIDTH
from tests.helpers.engine_steps import item
from tests.helpers.models import make_redrafter

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
    state = torch.zeros(table.shape[1])
    for token in path:
        if "rnn_u.weight" not in parts:
            state = state + table[token]
        else:
            kept = parts["rnn_u.weight"] @ state + parts["rnn_u.bias"]
            state = silu(parts["rnn_w.weight"] @ table[token] + kept)
    x = torch.cat([torch.from_numpy(hidden), state])
    if "input_proj.weight" in parts:
        x = parts["input_proj.weight"] @ x + parts["input_proj.bias"]
    layers = sum(name.endswith("linear.weight") for name in parts)
    for layer in range(layers):
        at = f"lm_head.{layer}.linear"
        x = x + silu(parts[f"{at}.weight"] @ x + parts[f"{at}.bias"])
    return torch.softmax(parts.get(f"lm_head.{layers}.weight", table) @ x, -1).numpy()


def hidden_of(engine: LoadedEngine) -> np.ndarray:
    """Return the hidden states [2, D] of the prompt's last rows: those of two sequences."""
    (scores,) = engine.step([item(engine.open(), PROMPT, wanted=[3, 6])])
    return scores.hidden


def first_of(engine: LoadedEngine, hidden: np.ndarray, *tokens: int) -> Extensions:
    """Return what the drafter guesses after the first tokens of as many sequences."""
    return engine.extend(hidden, np.zeros_like(hidden), np.array(tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_guesses_behind_every_path_are_those_of_the_formula(
    kind: str, tiny: Path, make_engine, tmp_path: Path
) -> None:
    make_redrafter(tmp_path, seed=5, **KINDS[kind])
    engine = make_engine(tiny, redrafter=tmp_path)
    table = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"].float()
    hidden = hidden_of(engine)
    first = first_of(engine, hidden, 7, 9)
    owners, children = np.array([0, 0, 1]), np.array([3, 200, 4])
    second = engine.extend(hidden[owners], first.states[owners], children)
    paths = [[7, 3], [7, 200], [9, 4]]
    for found, places, ends in ((first, [0, 1], [[7], [9]]), (second, owners, paths)):
        assert found.tokens.shape == found.probs.shape == (len(ends), WIDTH)
        for at, path, tokens, given in zip(places, ends, found.tokens, found.probs, strict=True):
            row = expected(tmp_path, table, hidden[at], path)
            # The output layer is kept in 8 bits: near-ties may change places, no more.
            np.testing.assert_allclose(given, row[tokens], atol=0.03)
            np.testing.assert_allclose(row[tokens], np.sort(row)[::-1][:WIDTH], atol=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_paths_are_extended_together_like_one_at_a_time(
    kind: str, tiny: Path, make_engine, tmp_path: Path
) -> None:
    make_redrafter(tmp_path, seed=5, **KINDS[kind])
    engine = make_engine(tiny, redrafter=tmp_path)
    hidden = hidden_of(engine)
    both = first_of(engine, hidden, 7, 9)
    for row, token in enumerate((7, 9)):
        one = first_of(engine, hidden[row : row + 1], token)
        np.testing.assert_array_equal(one.tokens[0], both.tokens[row])
        np.testing.assert_allclose(one.probs[0], both.probs[row], atol=1e-5)
        np.testing.assert_allclose(one.states[0], both.states[row], atol=1e-5)


def test_it_guesses_the_first_tokens_alone_if_told_to(
    tiny: Path, make_engine, tmp_path: Path
) -> None:
    make_redrafter(tmp_path, seed=5)
    engine = make_engine(tiny, redrafter=tmp_path, method="redrafter", draft_vocab_size=64)
    found = first_of(engine, hidden_of(engine)[:1], 7)
    assert found.tokens.max() < 64 and found.probs.sum() <= 1.001


def test_it_guesses_the_first_tokens_of_its_map(tiny: Path, make_engine, tmp_path: Path) -> None:
    order = np.random.default_rng(4).permutation(320)
    make_redrafter(tmp_path, seed=5, token_map=order.tolist())
    engine = make_engine(tiny, redrafter=tmp_path, method="redrafter", draft_vocab_size=64)
    table = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"].float()
    hidden = hidden_of(engine)[:1]
    row = expected(tmp_path, table, hidden[0], [7])
    found = first_of(engine, hidden, 7)
    kept = order[:64]
    assert set(found.tokens[0].tolist()) <= set(kept.tolist())
    np.testing.assert_allclose(found.probs[0], row[found.tokens[0]] / row[kept].sum(), atol=0.03)
    best = np.sort(row[kept])[::-1][:WIDTH]
    np.testing.assert_allclose(row[found.tokens[0]], best, atol=0.01)


def test_an_engine_without_one_says_so(tiny_engine: LoadedEngine) -> None:
    with pytest.raises(Unsupported, match="this engine has no ReDrafter"):
        first_of(tiny_engine, np.zeros((1, 64), np.float32), 1)
