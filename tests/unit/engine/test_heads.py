"""Medusa heads in the CPU engine: the arithmetic of the paper, and a proposer that drives them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from specpipe.assembly import make_proposer
from specpipe.contracts import EMPTY, Sampling
from specpipe.engine.openvino.backend import OpenVinoEngine
from specpipe.errors import Unsupported
from specpipe.methods import DraftModel, DraftOptions
from specpipe.speculate.decode import Limits, decode
from specpipe.speculate.medusa import MedusaProposer
from specpipe.speculate.none import NoProposer
from specpipe.trees import WIDTH, complete_tree
from tests.models import make_heads

PROMPT = [5, 9, 40, 41, 42, 9, 40]
TREE = complete_tree([(0, 0, 0), (0, 1), (1, 0), (2,)])


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
    runner = make_engine(tiny, heads=tmp_path).runner()
    runner.start(PROMPT)
    hidden = runner.score(EMPTY).hidden[0].copy()
    shared = None if own else embedding(tiny)
    probs = expected(tensors, hidden, layers, shared)
    guesses = runner.guess(hidden)
    assert guesses.tokens.shape == guesses.probs.shape == (3, WIDTH)
    for row, tokens, given in zip(probs, guesses.tokens, guesses.probs, strict=True):
        # The output layer is kept in 8 bits: near-ties may change places, no more.
        np.testing.assert_allclose(given, row[tokens], atol=0.02)
        np.testing.assert_allclose(row[tokens], np.sort(row)[::-1][:WIDTH], atol=0.02)
        assert list(given) == sorted(given, reverse=True)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_heads_guess_the_first_tokens_alone_if_told_to(
    own: bool, tiny: Path, make_engine, tmp_path: Path
) -> None:
    tensors = make_heads(tmp_path, seed=5, vocab=320 if own else None)
    runner = make_engine(tiny, heads=tmp_path, guess_vocabulary=64).runner()
    runner.start(PROMPT)
    hidden = runner.score(EMPTY).hidden[0].copy()
    guesses = runner.guess(hidden)
    first = expected(tensors, hidden, 1, None if own else embedding(tiny))[:, :64]
    first /= first.sum(axis=1, keepdims=True)
    for row, tokens, given in zip(first, guesses.tokens, guesses.probs, strict=True):
        assert max(tokens) < 64
        np.testing.assert_allclose(given, np.sort(row)[::-1][:WIDTH], atol=0.02)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_heads_in_full_guess_what_compact_heads_guess(
    own: bool, tiny: Path, make_engine, tmp_path: Path
) -> None:
    make_heads(tmp_path, seed=5, vocab=320 if own else None)
    compact = make_engine(tiny, heads=tmp_path).runner()
    full = make_engine(tiny, heads=tmp_path, max_draft_len=7).runner()
    hidden = np.linspace(-1, 1, 64, dtype=np.float32)
    ours, theirs = full.guess(hidden), compact.guess(hidden)
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_allclose(ours.probs, theirs.probs, atol=1e-5)
    full.start(PROMPT)
    compact.start(PROMPT)
    np.testing.assert_allclose(full.score(EMPTY).logits, compact.score(EMPTY).logits, atol=1e-5)


def embedding(folder: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")["model.embed_tokens.weight"].float()


@pytest.fixture(scope="module")
def with_heads(tiny: Path, make_engine, tmp_path_factory) -> OpenVinoEngine:
    folder = tmp_path_factory.mktemp("heads")
    make_heads(folder, seed=6)
    return make_engine(tiny, heads=folder)


@pytest.mark.parametrize("tree", [TREE, None], ids=["listed", "dynamic"])
def test_greedy_output_equals_plain_decoding(tree, with_heads: OpenVinoEngine) -> None:
    plain, ours = with_heads.runner(), with_heads.runner()
    limits, sampling = Limits(60), Sampling()
    expected = [t for s in decode(plain, NoProposer(), PROMPT, sampling, limits) for t in s.tokens]
    steps = list(decode(ours, MedusaProposer(ours, 6, tree), PROMPT, sampling, limits))
    assert [t for s in steps for t in s.tokens] == expected
    assert sum(s.drafted for s in steps) > 60


def test_a_draft_with_heads_guesses_what_it_guesses_without(with_heads: OpenVinoEngine) -> None:
    limits, prompt = Limits(20), [1, 2, 3]
    outputs = []
    for heads in (None, "unused"):
        options = DraftModel("draft_model", DraftOptions("unused", heads), 6)
        proposer = make_proposer(options, {"draft": with_heads.runner()})
        steps = list(decode(with_heads.runner(), proposer, prompt, Sampling(), limits))
        outputs.append([step.tokens for step in steps])
    assert outputs[0] == outputs[1]
    assert max(map(len, outputs[0])) == 7  # the draft is the target: all of it is accepted


def test_an_engine_without_heads_says_so(tiny_engine: OpenVinoEngine) -> None:
    with pytest.raises(Unsupported, match="has no Medusa heads"):
        tiny_engine.runner().guess(np.zeros(64, np.float32))
