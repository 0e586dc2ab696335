"""A draft that decodes speculatively itself: the same guesses in fewer calls."""

import numpy as np
import pytest

from specpipe.config.method_parts import DraftOptions
from specpipe.config.speculation import DraftModel
from specpipe.core.contracts import Draft, Proposer, Sampling, Scores, Verdict
from specpipe.core.engines import EngineFacts
from specpipe.speculate.draft_model import DraftModelProposer, build
from tests.helpers.scripted_model import Model, ScriptedModel, proposed, random_distribution

TARGET = random_distribution(6, seed=4)
PROMPT = [1, 2, 3]
FACTS = EngineFacts(vocab_size=6, max_seq_len=10_000)


def proposer(*, heads: bool, depth: int = 8, confidence: float = 0.0) -> DraftModelProposer:
    draft = DraftOptions("unused", "unused" if heads else None, 4)
    length = "confidence" if confidence else "fixed"
    made = build(
        DraftModel("draft_model", draft, depth, length, confidence), {"draft": FACTS}
    )  # fmt: skip
    assert isinstance(made, DraftModelProposer)
    made.start(PROMPT, Sampling())
    return made


def drafted(proposer: Proposer, limit: int, model: Model | None = None) -> Draft:
    return proposed(proposer.propose(limit), {"draft": model or ScriptedModel(TARGET)})


@pytest.mark.parametrize("confidence", [0.0, 0.5])
@pytest.mark.parametrize("limit", [1, 2, 3, 8])
def test_the_same_guesses_come_in_fewer_calls(limit: int, confidence: float) -> None:
    plain, quick = (ScriptedModel(TARGET) for _ in range(2))
    expected = drafted(proposer(heads=False, confidence=confidence), limit, plain)
    got = drafted(proposer(heads=True, confidence=confidence), limit, quick)
    assert got.tokens.tolist() == expected.tokens.tolist()
    assert len(got) <= limit
    assert quick.calls <= plain.calls
    if limit == 8 and not confidence:
        assert quick.calls <= plain.calls / 2


def test_what_the_target_refused_is_forgotten() -> None:
    ours = proposer(heads=True)
    refused = drafted(ours, 4)
    ours.observe(refused, Scores(np.zeros((0, 0), np.float32)), Verdict((0,), 5))
    context = [*PROMPT, int(refused.tokens[0]), 5]
    assert drafted(ours, 1).tokens.tolist() == [int(np.argmax(TARGET(context)))]


def test_sampled_guesses_carry_the_distribution_that_they_came_from() -> None:
    made = build(DraftModel("draft_model", DraftOptions("unused", "unused"), 5), {"draft": FACTS})
    made.start(PROMPT, Sampling(top_k=0, seed=3))
    draft = drafted(made, 5)
    assert draft.probs is not None and len(draft.probs) == len(draft) == 5
    context = list(PROMPT)
    for token, distribution in zip(draft.tokens.tolist(), draft.probs, strict=True):
        np.testing.assert_allclose(distribution, TARGET(context), atol=1e-6)
        context.append(token)


def test_a_draft_ends_where_the_sequences_of_the_draft_model_end() -> None:
    made = build(DraftModel("draft_model", DraftOptions("unused"), 5), {"draft": EngineFacts(6, 5)})
    made.start(PROMPT, Sampling())
    assert len(drafted(made, 5)) == 2
