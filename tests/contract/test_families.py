"""Every family in the table is converted and run on the CPU; logits equal transformers'."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from specpipe.checkpoint.families import FAMILIES
from specpipe.core.contracts import ROOT
from specpipe.core.engines import Cache, LoadedEngine
from tests.helpers.engine_steps import item, keep, rooted, started
from tests.helpers.families import WORLDS, make_family

CASES = [(name, variant) for name, world in WORLDS.items() for variant in world.variants]
TREE = [ROOT, 0, ROOT, 1, 0]  # parents of five nodes
TOLERANCE = 1e-3

Logits = Callable[[list[list[int]]], list[np.ndarray]]


def test_every_family_has_a_model_here() -> None:
    assert set(WORLDS) == set(FAMILIES)


def reference(folder: Path) -> Logits:
    """Return a function from sequences to transformers' logits at all positions."""
    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # transformers 4's default drops the cap

    def logits(sequences: list[list[int]]) -> list[np.ndarray]:
        longest = max(map(len, sequences))
        padded = [[*s, *[3] * (longest - len(s))] for s in sequences]  # behind: not seen
        with torch.no_grad():
            found = model(torch.tensor(padded), use_cache=False).logits.numpy()
        return [row[: len(s)] for row, s in zip(found, sequences, strict=True)]

    return logits


def differ(ours: np.ndarray, theirs: list[np.ndarray] | np.ndarray) -> float:
    return float(np.abs(ours - np.stack(list(theirs))).max())


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_prompts_later_steps_and_trees_have_the_logits_of_transformers(
    name: str, variant: str, tmp_path: Path, make_engine
) -> None:
    """Every step serves three sequences: one with a tree, one root, one chunk of a prompt."""
    folder = make_family(tmp_path / "model", name, variant)
    expected = reference(folder)
    if WORLDS[name].rewrite:
        WORLDS[name].rewrite(folder)
    engine = make_engine(folder)
    rng = np.random.default_rng(0)
    text, other, third = (rng.integers(3, engine.facts.vocab_size, 80).tolist() for _ in range(3))
    a, b, c, d, e = rng.integers(3, engine.facts.vocab_size, 5).tolist()
    paths = [[], [a], [a, b], [c], [a, b, d], [a, e]]
    sequences = [text, other, third, *([*text, *path] for path in paths), [*text, a, e, c, d]]
    whole, beside, prompt, *ends = expected(sequences)

    one, two, three = started(engine, text[:63]), started(engine, other[:30]), engine.open()
    steps = [  # the rows of the first, and what transformers has for them; its rows to keep
        (item(one, text[63:79]), whole[63:79], range(16)),  # ends in the middle of a block
        (rooted(one, text[79], [a, b, c, d, e], TREE), [end[-1] for end in ends[:-1]], (0, 1, 5)),
        (item(one, [c, d]), ends[-1][-2:], (0,)),  # after rows that do not follow each other
    ]
    for n, (first, want, rows) in enumerate(steps):
        chunk = third[12 * n : 12 * n + 12]
        found = engine.step([item(two, [other[30 + n]]), first, item(three, chunk)])
        assert differ(found[1].logits, want) < TOLERANCE
        assert differ(found[0].logits, beside[30 + n : 31 + n]) < TOLERANCE
        assert differ(found[2].logits, prompt[12 * n : 12 * n + 12]) < TOLERANCE
        for cache, kept in ((one, rows), (two, [0]), (three, range(12))):
            keep(cache, *kept)
    written = greedy(engine, three, int(found[2].logits[-1].argmax()))
    (judged,) = expected([[*third[:36], *written]])
    assert judged[35:-1].argmax(axis=1).tolist() == written


def greedy(engine: LoadedEngine, cache: Cache, token: int, count: int = 8) -> list[int]:
    """Return `count` tokens: the given one, and those that follow it most likely."""
    tokens = [token]
    while len(tokens) < count:
        (found,) = engine.step([item(cache, tokens[-1:])])
        keep(cache, 0)
        tokens.append(int(found.logits[-1].argmax()))
    return tokens


NEAR = [
    ("MixtralForCausalLM", "plain", "float32", "int8"),
    ("MixtralForCausalLM", "plain", "bfloat16", "none"),
    ("Qwen2MoeForCausalLM", "plain", "float32", "int8"),
    ("GPT2LMHeadModel", "plain", "float32", "int8"),
    ("PhiForCausalLM", "plain", "bfloat16", "none"),
    ("FalconForCausalLM", "40b", "float32", "int4"),
    ("FalconForCausalLM", "rw", "bfloat16", "none"),
    ("Gemma2ForCausalLM", "window", "bfloat16", "none"),
    ("Gemma3ForCausalLM", "window", "bfloat16", "none"),
    ("CohereForCausalLM", "normed", "float32", "int8"),
    ("Qwen3MoeForCausalLM", "plain", "float32", "int8"),
    ("Glm4ForCausalLM", "plain", "float32", "int8"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant", "dtype", "quantization"), NEAR)
def test_smaller_numbers_stay_near(
    name: str, variant: str, dtype: str, quantization: str, tmp_path: Path, make_engine
) -> None:
    folder = make_family(tmp_path / "model", name, variant)
    engine = make_engine(folder, dtype, quantization)
    text = np.random.default_rng(0).integers(3, engine.facts.vocab_size, 40).tolist()
    cache, theirs = started(engine, text[:15]), reference(folder)([text])[0][15:]
    (ours,) = (scores.logits for scores in engine.step([item(cache, text[15:])]))
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.97
