"""Medusa heads in the CPU engine: the arithmetic of the paper, for batches of hidden states."""

from pathlib import Path

import numpy as np
import pytest
import torch

from specpipe.core.engines import LoadedEngine
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.core.trees import WIDTH
from tests.helpers.engine_steps import item
from tests.helpers.models import make_heads

PROMPT = [5, 9, 40, 41, 42, 9, 40]


def hidden_of(engine: LoadedEngine) -> np.ndarray:
    """Return the hidden states [3, D] of the prompt's last rows."""
    (scores,) = engine.step([item(engine.open(), PROMPT, wanted=[4, 5, 6])])
    return scores.hidden


def expected(tensors, hidden: np.ndarray, layers: int, output: torch.Tensor | None) -> np.ndarray:
    """Return the probabilities [K, V] that the paper's formula gives."""
    rows = []
    for head in range(len({name.split(".")[0] for name in tensors})):
        x = torch.from_numpy(hidden)
        for layer in range(layers):
            weight, bias = (tensors[f"{head}.{layer}.linear.{part}"] for part in ("weight", "bias"))
            x = x + torch.nn.functional.silu(weight @ x + bias)
        last = output if output is not None else tensors[f"{head}.{layers}.weight"]
        rows.append(torch.softmax(last @ x, -1).numpy())
    return np.stack(rows)


@pytest.mark.parametrize(("layers", "own"), [(1, False), (2, True)])
def test_guesses_are_those_of_the_formula(
    layers: int, own: bool, tiny: Path, make_engine, tmp_path: Path
) -> None:
    tensors = make_heads(tmp_path, seed=5, layers=layers, vocab=320 if own else None)
    engine = make_engine(tiny, heads=tmp_path)
    states = hidden_of(engine)
    batch = engine.guess(states)
    assert len(batch) == len(states)
    for hidden, guesses in zip(states, batch, strict=True):
        probs = expected(tensors, hidden, layers, None if own else embedding(tiny))
        assert guesses.tokens.shape == guesses.probs.shape == (3, WIDTH)
        for row, tokens, given in zip(probs, guesses.tokens, guesses.probs, strict=True):
            # The output layer is kept in 8 bits: near-ties may change places, no more.
            np.testing.assert_allclose(given, row[tokens], atol=0.02)
            np.testing.assert_allclose(row[tokens], np.sort(row)[::-1][:WIDTH], atol=0.02)
            assert list(given) == sorted(given, reverse=True)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_a_batch_is_guessed_like_one_state_at_a_time(
    own: bool, tiny: Path, make_engine, tmp_path: Path
) -> None:
    make_heads(tmp_path, seed=5, vocab=320 if own else None)
    engine = make_engine(tiny, heads=tmp_path)
    states = hidden_of(engine)
    for hidden, guesses in zip(states, engine.guess(states), strict=True):
        (one,) = engine.guess(hidden[None])
        np.testing.assert_array_equal(one.tokens, guesses.tokens)
        np.testing.assert_allclose(one.probs, guesses.probs, atol=1e-5)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_heads_guess_the_first_tokens_alone_if_told_to(
    own: bool, tiny: Path, make_engine, tmp_path: Path
) -> None:
    tensors = make_heads(tmp_path, seed=5, vocab=320 if own else None)
    engine = make_engine(tiny, heads=tmp_path, draft_vocab_size=64)
    hidden = hidden_of(engine)[-1]
    (guesses,) = engine.guess(hidden[None])
    first = expected(tensors, hidden, 1, None if own else embedding(tiny))[:, :64]
    first /= first.sum(axis=1, keepdims=True)
    for row, tokens, given in zip(first, guesses.tokens, guesses.probs, strict=True):
        assert max(tokens) < 64
        np.testing.assert_allclose(given, np.sort(row)[::-1][:WIDTH], atol=0.02)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_heads_guess_the_first_tokens_of_their_map(
    own: bool, tiny: Path, make_engine, tmp_path: Path
) -> None:
    order = np.random.default_rng(4).permutation(320)
    tensors = make_heads(tmp_path, seed=5, vocab=320 if own else None, token_map=order.tolist())
    del tensors["token_map"]
    hidden = hidden_of(engine := make_engine(tiny, heads=tmp_path, draft_vocab_size=64))[-1]
    (guesses,) = engine.guess(hidden[None])
    whole = expected(tensors, hidden, 1, None if own else embedding(tiny))
    kept = whole[:, order[:64]].sum(axis=1, keepdims=True)
    for row, tokens, given in zip(whole / kept, guesses.tokens, guesses.probs, strict=True):
        assert set(tokens.tolist()) <= set(order[:64].tolist())
        np.testing.assert_allclose(given, row[tokens], atol=0.02)
        np.testing.assert_allclose(given, np.sort(row[order[:64]])[::-1][:WIDTH], atol=0.02)


def test_a_map_shorter_than_the_drafted_tokens_is_all_that_is_drafted(
    tiny: Path, make_engine, tmp_path: Path
) -> None:
    make_heads(tmp_path, seed=5, token_map=list(range(300, 316)))
    engine = make_engine(tiny, heads=tmp_path, draft_vocab_size=64)
    (guesses,) = engine.guess(np.ones((1, 64), np.float32))
    assert guesses.tokens.min() >= 300


@pytest.mark.parametrize(
    "wrong",
    [[*range(19), 5], [*range(19), 320], [-1, *range(19)], [*range(WIDTH - 1)]],
    ids=["twice", "beyond", "below", "few"],
)
def test_a_damaged_map_is_refused(
    wrong: list[int], tiny: Path, make_engine, tmp_path: Path
) -> None:
    make_heads(tmp_path, seed=5, token_map=wrong)
    with pytest.raises(ConfigError, match=r"medusa_heads\.token_map has a token twice"):
        make_engine(tiny, heads=tmp_path, draft_vocab_size=16)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_heads_in_full_guess_what_compact_heads_guess(
    own: bool, tiny: Path, make_engine, tmp_path: Path
) -> None:
    make_heads(tmp_path, seed=5, vocab=320 if own else None)
    compact = make_engine(tiny, heads=tmp_path)
    full = make_engine(tiny, heads=tmp_path, max_draft_len=7)
    hidden = np.linspace(-1, 1, 64, dtype=np.float32)[None]
    (ours,), (theirs,) = full.guess(hidden), compact.guess(hidden)
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_allclose(ours.probs, theirs.probs, atol=1e-5)
    np.testing.assert_allclose(hidden_of(full), hidden_of(compact), atol=1e-5)


def embedding(folder: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")["model.embed_tokens.weight"].float()


def test_an_engine_without_heads_says_so(tiny_engine: LoadedEngine) -> None:
    with pytest.raises(Unsupported, match="has no Medusa heads"):
        tiny_engine.guess(np.zeros((1, 64), np.float32))
