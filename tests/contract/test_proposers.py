"""The contract of every proposer in the table: greedy equality, bounds, restarts.

A new method is tested without changes here. test_laws.py tests its distribution, and
test_mutants.py shows that each test can fail.
"""

import itertools
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from specpipe.assembly import PROPOSERS
from specpipe.contracts import EMPTY, ROOT, Draft, Proposer, Sampling, chain
from specpipe.methods import UPSTREAM_ONLY, Speculation
from specpipe.speculate import accept
from specpipe.speculate.decode import Limits, decode
from tests.contract.worlds import OPTIONS, PROMPT, World
from tests.unit.speculate.scripted import ScriptedRunner

WORLD = World(vocab_size=5)

every_option = pytest.mark.parametrize("options", OPTIONS)
every_draft = pytest.mark.parametrize("draft_law", WORLD.drafts)


def test_every_method_of_the_config_has_a_proposer_and_options_here() -> None:
    records = {get_args(m.__annotations__["method"])[0] for m in get_args(Speculation)}
    tried = {make(1).method for make in OPTIONS.values()}
    assert records - set(UPSTREAM_ONLY) == set(PROPOSERS) == tried


@every_option
@every_draft
@pytest.mark.parametrize("depth", range(1, 9))
def test_greedy_output_equals_plain_decoding(options: str, draft_law: str, depth: int) -> None:
    for most in (1, 2, 7, 40):
        got = WORLD.generate(WORLD.proposer(options, draft_law, depth), Sampling(), Limits(most))
        assert got == WORLD.plain(Sampling(), Limits(most))


@every_option
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(repetition_penalty=1.7),
        Sampling(presence_penalty=0.8, frequency_penalty=0.3),
        Sampling(end_ids=(3, 1)),
        Sampling(end_ids=(3, 1), min_tokens=9),
        Sampling(bad_words=((1, 2), (4,))),
    ],
    ids=["repetition", "presence+frequency", "end_ids", "min_tokens", "bad_words"],
)
def test_greedy_output_equals_plain_decoding_with_options(options: str, sampling: Sampling) -> None:
    for draft_law in WORLD.drafts:
        got = WORLD.generate(WORLD.proposer(options, draft_law), sampling, Limits(30))
        assert got == WORLD.plain(sampling, Limits(30)), draft_law


@every_option
def test_every_token_of_the_output_can_be_the_end(options: str) -> None:
    """Ends fall on the first, a middle and the last token of accepted blocks."""
    for draft_law in WORLD.drafts:
        for end_id in range(WORLD.vocab_size):
            sampling = Sampling(end_ids=(end_id,), presence_penalty=0.5)
            got = WORLD.generate(WORLD.proposer(options, draft_law, 5), sampling, Limits(25))
            assert got == WORLD.plain(sampling, Limits(25))
            assert end_id not in got[:-1]


@every_option
def test_a_stop_word_ends_the_answer_where_plain_decoding_ends(options: str) -> None:
    words = [(a, b) for a in range(WORLD.vocab_size) for b in range(WORLD.vocab_size)]
    for word in words:
        limits = Limits(25, stop_words=(word,))
        got = WORLD.generate(WORLD.proposer(options, "identical", 4), Sampling(), limits)
        assert got == WORLD.plain(Sampling(), limits)


@every_option
def test_a_proposer_can_be_started_again(options: str) -> None:
    for sampling in (Sampling(), Sampling(top_k=0, seed=5)):
        proposer = WORLD.proposer(options)
        first = WORLD.generate(proposer, sampling, Limits(20))
        WORLD.generate(proposer, replace(sampling, seed=6), Limits(9), prompt=[4, 4, 3])
        assert WORLD.generate(proposer, sampling, Limits(20)) == first


@every_option
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=0)], ids=["greedy", "sampled"])
def test_drafts_are_bounded_and_well_formed(options: str, sampling: Sampling) -> None:
    proposer, target = WORLD.proposer(options), ScriptedRunner(WORLD.target, WORLD.vocab_size)
    proposer.start(PROMPT, sampling)
    target.start(PROMPT)
    for limit in (-1, 0, 1, 2, 50, 1, 50, 0, 50):
        draft = proposer.propose(limit)
        assert len(draft) <= proposer.draft_nodes and draft.depth <= max(limit, 0)
        assert limit > 0 or len(draft) == 0
        assert all(ROOT <= parent < node for node, parent in enumerate(draft.parents))
        if draft.probs is not None:
            np.testing.assert_allclose(draft.probs.sum(axis=1), 1)
        follow_the_target(target, proposer, draft)


def follow_the_target(target: ScriptedRunner, proposer: Proposer, draft: Draft) -> None:
    scores = target.score(draft)

    def best(path: accept.Path) -> int:
        return int(np.argmax(scores.logits[path[-1] + 1 if path else 0]))

    verdict = accept.greedy(draft, best)
    target.commit(draft, verdict)
    proposer.observe(draft, scores, verdict)


@every_option
def test_no_step_accepts_more_than_it_drafted(options: str) -> None:
    for first in itertools.product(range(WORLD.vocab_size), repeat=2):
        runner = ScriptedRunner(WORLD.target, WORLD.vocab_size)
        proposer = WORLD.proposer(options, "random", 4)
        for step in decode(runner, proposer, first, Sampling(end_ids=(4,)), Limits(30)):
            assert 0 <= step.accepted <= step.drafted <= 4
            assert step.accepted <= len(step.tokens) <= step.accepted + 1


def test_an_identical_draft_is_always_accepted_whole() -> None:
    for sampling in (Sampling(), Sampling(top_k=0, temperature=0.7, frequency_penalty=0.3)):
        runner = ScriptedRunner(WORLD.target, WORLD.vocab_size)
        proposer = WORLD.proposer("draft_model", "identical", 4)
        steps = list(decode(runner, proposer, PROMPT, sampling, Limits(50)))
        assert all(step.accepted == step.drafted for step in steps)


def test_an_empty_draft_is_always_allowed() -> None:
    assert len(EMPTY) == EMPTY.depth == 0 and chain([]).probs is None
