"""What every proposer in the table promises, whatever it is: lossless, bounded, restartable.

A new method is picked up unasked. Each promise is also held against planted wrong rules, which must
break it; a promise that nothing can break proves nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from specpipe.assembly import PROPOSERS, make_proposer
from specpipe.config import (
    DraftModel,
    DraftOptions,
    Lookahead,
    Medusa,
    NoSpeculation,
    PromptLookup,
    Speculation,
)
from specpipe.contracts import EMPTY, ROOT, Draft, Floats, Proposer, Role, Sampling, Verdict, chain
from specpipe.speculate import accept, decode
from specpipe.speculate.decode import Limits
from specpipe.trees import complete_tree
from tests.unit.speculate.scripted import ScriptedRunner, random_law

VOCAB = 5
OPTIONS: dict[str, Callable[[int], Speculation]] = {  # how deep to guess -> options
    "none": lambda depth: NoSpeculation(),
    "prompt_lookup": lambda depth: PromptLookup("prompt_lookup", depth, 1, 3),
    "draft_model": lambda depth: DraftModel("draft_model", DraftOptions("unused"), depth),
    "lookahead": lambda depth: Lookahead("lookahead", 2, depth + 1, 3),
    "medusa": lambda depth: medusa(depth),
}


def medusa(depth: int) -> Medusa:
    """Return options with a tree of that depth, with siblings on its two first levels."""
    best = [(0,) * level for level in range(1, depth + 1)]
    tree = complete_tree([*best, (1,), (1, 1)][: depth + 2] if depth > 1 else [(0,), (1,)])
    return Medusa("medusa", "unused", len(tree), tree)


TARGET = random_law(VOCAB, seed=1)
DRAFTS = {
    "identical": TARGET,
    "random": random_law(VOCAB, seed=2),
    "adversarial": lambda context: np.eye(VOCAB)[int(np.argmin(TARGET(context)))],
}
PROMPT = [0, 1, 2, 0, 1, 2, 0, 1]

methods = pytest.mark.parametrize("method", PROPOSERS)
drafts = pytest.mark.parametrize("draft_law", DRAFTS)


def proposer_of(method: str, draft_law: str = "random", draft_tokens: int = 3) -> Proposer:
    options = OPTIONS[method](draft_tokens)
    runners: Mapping[Role, ScriptedRunner] = {
        "target": ScriptedRunner(TARGET, VOCAB, heads=DRAFTS[draft_law]),
        "draft": ScriptedRunner(DRAFTS[draft_law], VOCAB),
    }
    return make_proposer(options, runners)


def generate(
    proposer: Proposer, sampling: Sampling, limits: Limits, prompt: Sequence[int] = PROMPT
) -> list[int]:
    steps = decode.decode(ScriptedRunner(TARGET, VOCAB), proposer, prompt, sampling, limits)
    return [token for step in steps for token in step.tokens]


def plain(sampling: Sampling, limits: Limits) -> list[int]:
    return generate(make_proposer(NoSpeculation(), {}), sampling, limits)


def test_every_method_of_the_config_has_a_proposer_and_options_here() -> None:
    records = {get_args(m.__annotations__["method"])[0] for m in get_args(Speculation)}
    assert records == set(PROPOSERS) == set(OPTIONS)


@methods
@drafts
@pytest.mark.parametrize("draft_tokens", range(1, 9))
def test_greedy_output_equals_plain_decoding(
    method: str, draft_law: str, draft_tokens: int
) -> None:
    for most in (1, 2, 7, 40):
        limits = Limits(most)
        got = generate(proposer_of(method, draft_law, draft_tokens), Sampling(), limits)
        assert got == plain(Sampling(), limits)


@methods
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(repetition_penalty=1.7),
        Sampling(presence_penalty=0.8, frequency_penalty=0.3),
        Sampling(end_id=3),
        Sampling(end_id=3, min_tokens=9),
        Sampling(bad_words=((1, 2), (4,))),
    ],
    ids=["repetition", "presence+frequency", "end_id", "min_tokens", "bad_words"],
)
def test_greedy_output_equals_plain_decoding_with_options(method: str, sampling: Sampling) -> None:
    for draft_law in DRAFTS:
        got = generate(proposer_of(method, draft_law), sampling, Limits(30))
        assert got == plain(sampling, Limits(30)), draft_law


@methods
def test_a_proposer_can_be_started_again(method: str) -> None:
    proposer = proposer_of(method)
    first = generate(proposer, Sampling(), Limits(20))
    generate(proposer, Sampling(), Limits(9), prompt=[4, 4, 3])
    assert generate(proposer, Sampling(), Limits(20)) == first


@methods
def test_drafts_are_bounded_and_well_formed(method: str) -> None:
    proposer = proposer_of(method)
    proposer.start(PROMPT, Sampling(top_k=0))
    for limit in (0, 1, 2, 50):
        draft = proposer.propose(limit)
        assert len(draft) <= proposer.draft_nodes and draft.depth <= max(limit, 0)
        assert limit > 0 or len(draft) == 0
        assert all(ROOT <= parent < node for node, parent in enumerate(draft.parents))
        if draft.probs is not None:
            np.testing.assert_allclose(draft.probs.sum(axis=1), 1)


# --- the distribution of sampled output ---------------------------------------------------------

SAMPLED = {
    "plain": Sampling(top_k=0),
    "temperature": Sampling(top_k=0, temperature=0.7),
    "top_k": Sampling(top_k=3),
    "top_p": Sampling(top_k=0, top_p=0.8),
    "penalties": Sampling(top_k=0, repetition_penalty=1.5, frequency_penalty=0.4),
    "min_tokens": Sampling(top_k=0, end_id=2, min_tokens=2),
}
LENGTH = 3


def exact(sampling: Sampling) -> np.ndarray:
    """Return the exact joint law [V, V, V] of the first three tokens; what follows an end is 0."""
    from specpipe.speculate.sampling import adjust, distribution

    joint = np.zeros((VOCAB,) * LENGTH)

    def walk(output: tuple[int, ...], odds: float) -> None:
        if len(output) == LENGTH or sampling.end_id in output:
            joint[output + (0,) * (LENGTH - len(output))] += odds
            return
        history = PROMPT + list(output)
        logits = np.log(TARGET(history)).astype(np.float32)
        law = distribution(adjust(logits, sampling, history, len(output)), sampling)
        for token in np.flatnonzero(law):
            walk((*output, int(token)), odds * law[token])

    walk((), 1.0)
    return joint


def frequencies(method: str, draft_law: str, sampling: Sampling, draws: int) -> np.ndarray:
    counts = np.zeros((VOCAB,) * LENGTH)
    proposer = proposer_of(method, draft_law)
    for seed in range(draws):
        output = generate(proposer, replace(sampling, seed=seed), Limits(LENGTH))
        counts[tuple(output + [0] * (LENGTH - len(output)))] += 1
    return counts


def far_from(expected: np.ndarray, counts: np.ndarray) -> float:
    """Return the chi-square statistic in standard deviations above its mean, rare cells pooled."""
    draws = counts.sum()
    often = expected * draws >= 5
    rare = ~often
    seen = np.append(counts[often], counts[rare].sum())
    wanted = np.append(expected[often] * draws, expected[rare].sum() * draws)
    if wanted[-1] < 5:
        if seen[-1] > wanted[-1] + 6 * np.sqrt(wanted[-1] + 1):
            return np.inf
        seen, wanted = seen[:-1], wanted[:-1]
    statistic = float(((seen - wanted) ** 2 / wanted).sum())
    freedom = len(wanted) - 1
    return (statistic - freedom) / np.sqrt(2 * max(1, freedom))


@methods
@pytest.mark.parametrize("options", SAMPLED)
def test_sampled_output_has_the_targets_law(method: str, options: str) -> None:
    sampling = SAMPLED[options]
    for draft_law in ("random",) if method != "draft_model" else ("random", "identical"):
        counts = frequencies(method, draft_law, sampling, draws=4000)
        assert far_from(exact(sampling), counts) < 6, draft_law


# --- planted mutants: each promise above must be able to fail -----------------------------------

honest_sample = accept.sample


def accepts_everything(draft: Draft, law: Callable, rng: np.random.Generator) -> Verdict:
    path: tuple[int, ...] = ()
    while found := accept.children(draft, path):
        path += (found[0],)
    return Verdict(path, accept.draw(law(path), rng))


def resamples_from_p(draft: Draft, law: Callable, rng: np.random.Generator) -> Verdict:
    path: tuple[int, ...] = ()
    while True:
        p = law(path)
        for child in accept.children(draft, path):
            x = int(draft.tokens[child])
            q = np.eye(len(p))[x] if draft.probs is None else draft.probs[child]
            if rng.random() * q[x] < p[x]:
                path += (child,)
                break
        else:
            return Verdict(path, accept.draw(p, rng))


def ignores_the_draft_law(draft: Draft, law: Callable, rng: np.random.Generator) -> Verdict:
    return honest_sample(Draft(draft.tokens, draft.parents, None), law, rng)


def lenient(draft: Draft, law: Callable, rng: np.random.Generator) -> Verdict:
    def flattered(path: accept.Path) -> Floats:
        p = np.sqrt(law(path))
        return p / p.sum()

    return honest_sample(draft, flattered, rng)


@pytest.mark.parametrize("rule", [accepts_everything, resamples_from_p, lenient])
def test_a_wrong_sampling_rule_is_caught(rule: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode.accept, "sample", rule)
    counts = frequencies("draft_model", "random", SAMPLED["plain"], draws=4000)
    assert far_from(exact(SAMPLED["plain"]), counts) > 6


def test_taking_a_drawn_guess_for_a_certain_one_is_lossless_too(monkeypatch) -> None:
    """Not a mutant: a one-hot q is right for any guess whose law is unknown."""
    monkeypatch.setattr(decode.accept, "sample", ignores_the_draft_law)
    counts = frequencies("draft_model", "random", SAMPLED["plain"], 4000)
    assert far_from(exact(SAMPLED["plain"]), counts) < 6


def test_a_draft_that_hides_its_temperature_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from specpipe.speculate import draft_model

    honest = draft_model.DraftModelProposer._guess

    def hides(self, guesses):
        token, _ = honest(self, guesses)
        law = DRAFTS["random"](self._tokens + guesses)
        return token, law

    monkeypatch.setattr(draft_model.DraftModelProposer, "_guess", hides)
    sampling = SAMPLED["temperature"]
    assert far_from(exact(sampling), frequencies("draft_model", "random", sampling, 4000)) > 6


def test_skipping_the_history_of_the_path_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = decode.adjust
    monkeypatch.setattr(
        decode, "adjust", lambda logits, sampling, history, n: honest(logits, sampling, PROMPT, n)
    )
    sampling = Sampling(frequency_penalty=0.5)
    right = plain_with(honest, sampling)
    assert generate(proposer_of("draft_model"), sampling, Limits(30)) != right


def plain_with(honest: Callable, sampling: Sampling) -> list[int]:
    sequence = list(PROMPT)
    for n in range(30):
        logits = np.log(TARGET(sequence)).astype(np.float32)
        sequence.append(int(np.argmax(honest(logits, sampling, sequence, n))))
    return sequence[len(PROMPT) :]


def test_accepting_a_token_that_the_target_did_not_choose_is_caught(monkeypatch) -> None:
    def takes_the_first_child(draft: Draft, best: Callable) -> Verdict:
        path = (0,) if len(draft) else ()
        return Verdict(path, best(path))

    monkeypatch.setattr(decode.accept, "greedy", takes_the_first_child)
    assert generate(proposer_of("draft_model"), Sampling(), Limits(30)) != [
        *plain_with(decode.adjust, Sampling())
    ]


def test_skipping_the_bonus_token_is_caught(monkeypatch) -> None:
    honest = accept.greedy

    def repeats_the_last(draft: Draft, best: Callable) -> Verdict:
        verdict = honest(draft, best)
        if not verdict.path:
            return verdict
        return Verdict(verdict.path, int(draft.tokens[verdict.path[-1]]))

    monkeypatch.setattr(decode.accept, "greedy", repeats_the_last)
    got = generate(proposer_of("draft_model", "identical"), Sampling(), Limits(30))
    assert got != plain_with(decode.adjust, Sampling())


def test_an_empty_draft_is_always_allowed() -> None:
    assert len(EMPTY) == 0 and chain([]).probs is None
