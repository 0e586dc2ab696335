"""A draft that decodes speculatively itself: the same guesses in fewer calls."""

import numpy as np
import pytest

from specpipe.contracts import Sampling, Scores, Verdict
from specpipe.methods import DraftModel, DraftOptions
from specpipe.speculate.draft_model import build
from tests.unit.speculate.scripted import ScriptedRunner, random_law

LAW = random_law(6, seed=4)
PROMPT = [1, 2, 3]


def proposer(runner: ScriptedRunner, *, heads: bool, depth: int = 8, confidence: float = 0.0):
    draft = DraftOptions("unused", "unused" if heads else None, 4)
    length = "confidence" if confidence else "fixed"
    made = build(
        DraftModel("draft_model", draft, depth, length, confidence), {"draft": runner}
    )  # fmt: skip
    made.start(PROMPT, Sampling())
    return made


@pytest.mark.parametrize("confidence", [0.0, 0.5])
@pytest.mark.parametrize("limit", [1, 2, 3, 8])
def test_the_same_guesses_come_in_fewer_calls(limit: int, confidence: float) -> None:
    plain, quick = (ScriptedRunner(LAW, 6) for _ in range(2))
    expected = proposer(plain, heads=False, confidence=confidence).propose(limit)
    got = proposer(quick, heads=True, confidence=confidence).propose(limit)
    assert got.tokens.tolist() == expected.tokens.tolist()
    assert len(got) <= limit
    assert quick.calls <= plain.calls
    if limit == 8 and not confidence:
        assert quick.calls <= plain.calls / 2


def test_what_the_target_refused_is_forgotten() -> None:
    ours = proposer(ScriptedRunner(LAW, 6), heads=True)
    refused = ours.propose(4)
    ours.observe(refused, Scores(np.zeros((0, 0), np.float32)), Verdict((0,), 5))
    context = [*PROMPT, int(refused.tokens[0]), 5]
    assert ours.propose(1).tokens.tolist() == [int(np.argmax(LAW(context)))]


def test_sampled_guesses_carry_the_law_that_they_came_from() -> None:
    runner = ScriptedRunner(LAW, 6)
    made = build(DraftModel("draft_model", DraftOptions("unused", "unused"), 5), {"draft": runner})
    made.start(PROMPT, Sampling(top_k=0, seed=3))
    draft = made.propose(5)
    assert draft.probs is not None and len(draft.probs) == len(draft) == 5
    context = list(PROMPT)
    for token, law in zip(draft.tokens.tolist(), draft.probs, strict=True):
        np.testing.assert_allclose(law, LAW(context), atol=1e-6)
        context.append(token)
