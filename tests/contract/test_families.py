"""Every family in the table is converted and run on the CPU; logits equal transformers'."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from specpipe.checkpoint.families import FAMILIES
from specpipe.contracts import ROOT, Draft, Verdict, chain
from tests.families import WORLDS, make_family

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
    folder = make_family(tmp_path / "model", name, variant)
    expected = reference(folder)
    if WORLDS[name].rewrite:
        WORLDS[name].rewrite(folder)
    engine = make_engine(folder)
    rng = np.random.default_rng(0)
    text = rng.integers(3, engine.vocab_size, 80).tolist()
    a, b, c, d, e = rng.integers(3, engine.vocab_size, 5).tolist()
    tree = Draft(np.array([a, b, c, d, e]), np.array(TREE))
    paths = [[], [a], [a, b], [c], [a, b, d], [a, e]]
    whole, *ends = expected([text, *([*text, *path] for path in paths), [*text, a, e, c, d]])

    runner = engine.runner(len(TREE) + 1)
    runner.start(text[:71])
    assert differ(runner.score(chain(text[71:79])).logits, whole[70:79]) < TOLERANCE
    runner.commit(chain(text[71:79]), Verdict(tuple(range(8)), text[79]))  # fills a cache block
    assert differ(runner.score(tree).logits, [end[-1] for end in ends[:-1]]) < TOLERANCE
    runner.commit(tree, Verdict((0, 4), c))  # keeps rows that do not follow each other
    assert differ(runner.score(chain([d])).logits, ends[-1][-2:]) < TOLERANCE


NEAR = [
    ("MixtralForCausalLM", "plain", "float32", "int8"),
    ("MixtralForCausalLM", "plain", "bfloat16", "none"),
    ("Qwen2MoeForCausalLM", "plain", "float32", "int8"),
    ("GPT2LMHeadModel", "plain", "float32", "int8"),
    ("PhiForCausalLM", "plain", "bfloat16", "none"),
    ("FalconForCausalLM", "40b", "float32", "int4"),
    ("FalconForCausalLM", "rw", "bfloat16", "none"),
    ("Gemma2ForCausalLM", "window", "bfloat16", "none"),
]


@pytest.mark.parametrize(("name", "variant", "dtype", "quantization"), NEAR)
def test_smaller_numbers_stay_near(
    name: str, variant: str, dtype: str, quantization: str, tmp_path: Path, make_engine
) -> None:
    folder = make_family(tmp_path / "model", name, variant)
    engine = make_engine(folder, dtype, quantization)
    text = np.random.default_rng(0).integers(3, engine.vocab_size, 40).tolist()
    runner = engine.runner()
    runner.start(text[:1])
    ours, theirs = runner.score(chain(text[1:])).logits, reference(folder)([text])[0]
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.97
