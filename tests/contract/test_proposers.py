"""The contract of every proposer in the table: greedy equality, bounds, restarts.

A new method is tested without changes here. test_distributions.py tests its distribution, and
test_mutants.py shows that each test can fail.
"""

import functools
import itertools
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from specpipe.config.method_parts import DraftOptions
from specpipe.config.speculation import Speculation
from specpipe.config.upstream_methods import UPSTREAM_ONLY
from specpipe.core.contracts import EMPTY, ROOT, Draft, Sampling, chain
from specpipe.runtime.assembly import PROPOSERS
from specpipe.speculate import accept
from specpipe.speculate.decode import Limits
from tests.helpers.worlds import OPTIONS, PROMPT, Case, World, some_allowance, some_nodes

WORLD = World(vocab_size=5)
plain = functools.cache(WORLD.plain)  # the expected answer of all methods

every_option = pytest.mark.parametrize("options", OPTIONS)
every_draft = pytest.mark.parametrize("draft_name", WORLD.drafts)


def test_every_method_of_the_config_has_a_proposer_and_options_here() -> None:
    records = {get_args(m.__annotations__["method"])[0] for m in get_args(Speculation)}
    tried = {make(1).method for make in OPTIONS.values()}
    assert records - set(UPSTREAM_ONLY) == set(PROPOSERS) == tried


@every_option
@every_draft
@pytest.mark.parametrize("depth", range(1, 9))
def test_greedy_output_equals_plain_decoding(options: str, draft_name: str, depth: int) -> None:
    for most in (1, 2, 7, 40):
        got = WORLD.generate(WORLD.case(options, draft_name, depth), Sampling(), Limits(most))
        assert got == plain(Sampling(), Limits(most))


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
    for draft_name in WORLD.drafts:
        got = WORLD.generate(WORLD.case(options, draft_name), sampling, Limits(30))
        assert got == plain(sampling, Limits(30)), draft_name


@every_option
def test_every_token_of_the_output_can_be_the_end(options: str) -> None:
    """Ends fall on the first, a middle and the last token of accepted blocks."""
    for draft_name in WORLD.drafts:
        for end_id in range(WORLD.vocab_size):
            sampling = Sampling(end_ids=(end_id,), presence_penalty=0.5)
            got = WORLD.generate(WORLD.case(options, draft_name, 5), sampling, Limits(25))
            assert got == plain(sampling, Limits(25))
            assert end_id not in got[:-1]


@every_option
def test_a_stop_word_ends_the_answer_where_plain_decoding_ends(options: str) -> None:
    words = [(a, b) for a in range(WORLD.vocab_size) for b in range(WORLD.vocab_size)]
    for word in words:
        limits = Limits(25, stop_words=(word,))
        got = WORLD.generate(WORLD.case(options, "identical", 4), Sampling(), limits)
        assert got == plain(Sampling(), limits)


@every_option
def test_a_proposer_can_be_started_again(options: str) -> None:
    for sampling in (Sampling(), Sampling(top_k=0, seed=5)):
        case = WORLD.case(options)
        first = WORLD.steps(case, sampling, Limits(20))
        WORLD.generate(case, replace(sampling, seed=6), Limits(9), prompt=[4, 4, 3])
        assert WORLD.steps(case, sampling, Limits(20)) == first


@every_option
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=0)], ids=["greedy", "sampled"])
def test_drafts_are_bounded_and_well_formed(options: str, sampling: Sampling) -> None:
    case, tokens = WORLD.case(options), list(PROMPT)
    proposer = case.proposer
    proposer.start(PROMPT, sampling)
    for limit in (-1, 0, 1, 2, 50, 1, 50, 0, 50):
        draft = case.propose(limit)
        assert len(draft) <= proposer.draft_nodes and draft.depth <= max(limit, 0)
        assert limit > 0 or len(draft) == 0
        assert all(ROOT <= parent < node for node, parent in enumerate(draft.parents))
        for known in (draft.probs, draft.chances):
            assert known is None or len(known) == len(draft)
        if draft.probs is not None:
            np.testing.assert_allclose(draft.probs.sum(axis=1), 1)
        tokens += follow_the_target(case, tokens, draft)


def follow_the_target(case: Case, tokens: list[int], draft: Draft) -> list[int]:
    scores = case.models["target"].score(tokens, draft)

    def best(path: accept.Path) -> int:
        return int(np.argmax(scores.logits[path[-1] + 1 if path else 0]))

    verdict = accept.greedy(draft, best)
    case.proposer.observe(draft, scores, verdict)
    return verdict.emitted(draft)


@every_option
def test_no_step_accepts_more_than_it_drafted(options: str) -> None:
    for first in itertools.product(range(WORLD.vocab_size), repeat=2):
        case = WORLD.case(options, "random", 4)
        for step in WORLD.steps(case, Sampling(end_ids=(4,)), Limits(30), first):
            assert 0 <= step.accepted <= step.drafted <= 4
            assert step.accepted <= len(step.tokens) <= step.accepted + 1


def test_an_identical_draft_is_always_accepted_whole() -> None:
    for sampling in (Sampling(), Sampling(top_k=0, temperature=0.7, frequency_penalty=0.3)):
        case = WORLD.case("draft_model", "identical", 4)
        steps = WORLD.steps(case, sampling, Limits(50))
        assert all(step.accepted == step.drafted for step in steps)
        assert any(step.drafted == 4 for step in steps)


def test_an_empty_draft_is_always_allowed() -> None:
    assert len(EMPTY) == EMPTY.depth == 0 and chain([]).probs is None


# --- sampled output that is equal token for token -------------------------------------------------


OPTION_SETS = [
    Sampling(top_k=0),
    Sampling(top_k=3, temperature=0.8),
    Sampling(top_k=0, top_p=0.9, frequency_penalty=0.4),
    Sampling(top_k=0, repetition_penalty=1.5, end_ids=(3,), min_tokens=5),
]


# Draft models draw their drafts, which are then judged by the ratio of two distributions.
CHOSEN = [
    name
    for name, make in OPTIONS.items()
    if not isinstance(getattr(make(1), "draft", None), DraftOptions)
]


@every_option
def test_only_draft_models_draw_their_drafts(options: str) -> None:
    case = WORLD.case(options)
    case.proposer.start([0, 1, 2, 3, 4], Sampling(top_k=0))
    for _ in range(2):
        draft = case.propose(9)
        assert draft.probs is None or options not in CHOSEN
        assert draft.probs is not None or options in CHOSEN or not len(draft)
        follow_the_target(case, [0, 1, 2, 3, 4], draft)


@pytest.mark.parametrize("options", CHOSEN)
@pytest.mark.parametrize("sampling", OPTION_SETS)
def test_with_a_seed_sampled_output_equals_plain_decoding(options: str, sampling: Sampling) -> None:
    for draft_name, seed in itertools.product(WORLD.drafts, range(6)):
        seeded = replace(sampling, seed=seed)
        got = WORLD.generate(WORLD.case(options, draft_name, 4), seeded, Limits(30))
        assert got == plain(seeded, Limits(30)), (draft_name, seed)


@pytest.mark.parametrize("options", CHOSEN)
@pytest.mark.parametrize("sampling", OPTION_SETS)
def test_it_is_equal_whatever_is_allowed_and_scored(options: str, sampling: Sampling) -> None:
    for draft_name, seed in itertools.product(("identical", "random"), range(6)):
        seeded = replace(sampling, seed=seed)
        got = WORLD.generate(
            WORLD.case(options, draft_name, 4),
            seeded,
            Limits(30),
            allow=some_allowance(seed) if seed % 2 else lambda limit: limit,
            cut=some_nodes(seed),
        )
        assert got == plain(seeded, Limits(30)), (draft_name, seed)


@every_option
def test_greedy_output_is_equal_whatever_is_allowed_and_scored(options: str) -> None:
    for draft_name, seed in itertools.product(WORLD.drafts, range(10)):
        got = WORLD.generate(
            WORLD.case(options, draft_name, 5),
            Sampling(),
            Limits(40),
            allow=some_allowance(seed) if seed % 2 else lambda limit: limit,
            cut=some_nodes(seed),
        )
        assert got == plain(Sampling(), Limits(40)), (draft_name, seed)
