"""Names into objects, and what a request may ask of them."""

import pytest

from specpipe.config.speculation import Lookahead, NoSpeculation, PromptLookup, Speculation
from specpipe.core.contracts import Sampling
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.runtime.assembly import Runtime, limit_draft
from specpipe.speculate import decode
from specpipe.speculate.decode import Limits
from tests.helpers.toy_engine import TimedEngine, ToyEngine


def test_a_request_may_ask_for_fewer_draft_tokens_or_none() -> None:
    options = PromptLookup("prompt_lookup", 5)
    assert limit_draft(options, None) == limit_draft(options, 5) == options
    assert limit_draft(options, 2) == PromptLookup("prompt_lookup", 2)
    assert limit_draft(options, 0) == NoSpeculation()
    assert limit_draft(NoSpeculation(), 0) == NoSpeculation()


@pytest.mark.parametrize("options", [NoSpeculation(), PromptLookup("prompt_lookup", 3, 1, 3)])
def test_a_served_token_is_drawn_without_its_distribution(
    options: Speculation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole(*arguments: object) -> None:
        raise AssertionError("the whole distribution was computed")

    monkeypatch.setattr(decode, "distribution", whole)
    runtime = Runtime({"target": ToyEngine()}, options)
    steps = runtime.decode([1, 2, 1, 2], Sampling(top_k=0, top_p=0.9, seed=1), Limits(12))
    assert sum(len(step.tokens) for step in steps) == 12


@pytest.mark.parametrize("asked", [-1, 6])
def test_a_request_may_not_ask_for_more_than_is_configured(asked: int) -> None:
    with pytest.raises(ConfigError, match=f"num_draft_tokens is {asked}: must be from 0 to 5"):
        limit_draft(PromptLookup("prompt_lookup", 5), asked)


def test_a_draft_of_one_shape_is_taken_whole_or_not_at_all() -> None:
    options = Lookahead("lookahead", 4, 3, 4)
    assert limit_draft(options, 15) == limit_draft(options, None) == options
    assert limit_draft(options, 0) == NoSpeculation()
    with pytest.raises(Unsupported, match="lookahead drafts 15 tokens a step, or none with 0"):
        limit_draft(options, 3)


def test_a_large_model_is_warmed_up_by_a_few_rows() -> None:
    """Every further row would delay the start of its server."""
    fast, slow = TimedEngine(row_ms=1), TimedEngine(row_ms=500)
    for engine in (fast, slow):
        Runtime({"target": engine}, NoSpeculation()).warm_up(engine.clock)
        assert engine.pool.used == 0
    assert sum(fast.steps) > 70 and slow.steps == [1, 1, 1]
