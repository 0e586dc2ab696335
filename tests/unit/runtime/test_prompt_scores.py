"""Scores of a prompt are those of a softmax over whole rows, whatever the size of a block."""

import numpy as np
import pytest

from specpipe.runtime.prompt_scores import PromptScorer


@pytest.mark.parametrize("block", [1, 3, 64])
def test_scores_are_those_of_the_whole_softmax(block: int) -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 6, (10, 50)).astype(np.float32)
    prompt = rng.integers(0, 50, 10).tolist()
    prompt[4] = int(logits[3].argmax())
    scorer = PromptScorer(prompt)
    for begin in range(0, 10, block):
        scorer.add(logits[begin : begin + block])
    found = {name: array[0] for name, array in scorer.outputs().items()}
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(1, keepdims=True))
    own = exact[np.arange(9), prompt[1:]]
    np.testing.assert_allclose(found["prompt_log_probs"][:-1], own, rtol=1e-6)
    assert np.isnan(found["prompt_log_probs"][-1])
    assert found["prompt_top_ids"].tolist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(found["prompt_top_log_probs"], exact.max(1), rtol=1e-6)
    assert found["prompt_log_probs"][3] == found["prompt_top_log_probs"][3]  # the same float


def test_large_logits_do_not_overflow() -> None:
    scorer = PromptScorer([0, 1])
    scorer.add(np.array([[1e4, -1e4], [0, 0]], np.float32))
    outputs = scorer.outputs()
    assert outputs["prompt_log_probs"][0, 0] == -2e4 and outputs["prompt_top_log_probs"][0, 0] == 0
