"""Mutants: each breaks speculative decoding in one way that has happened in real code.

A mutant replaces one attribute of one module. `scripts/mutants` plants them one after the other and
runs the tests that must then fail. A surviving mutant is a gap in the tests of losslessness.
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from specpipe.contracts import ROOT, Draft, Verdict, chain
from specpipe.speculate import accept

VARIABLE = "SPECPIPE_MUTANT"  # its value is the name of the mutant to plant


@dataclass(frozen=True)
class Mutant:
    """One wrong attribute, derived from the correct one, and the tests that must fail."""

    attribute: str  # module:name or module:class.name
    spoil: Callable[[Any], Any]
    tests: tuple[str, ...]


def plant(name: str, replace_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """Replace the mutant's attribute by means of `replace_attribute`."""
    mutant = MUTANTS[name]
    module, _, path = mutant.attribute.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, attribute = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    replace_attribute(owner, attribute, mutant.spoil(getattr(owner, attribute)))


def plant_from_environment() -> None:
    """Plant the mutant that the environment names, if it names one."""
    if name := os.environ.get(VARIABLE):
        plant(name)


# --- acceptance ---------------------------------------------------------------------------------


def accepts_everything(honest: Any) -> Any:
    def sample(draft: Draft, law: Any, rng: Any) -> Verdict:
        path: accept.Path = ()
        while found := accept.children(draft, path):
            path += (found[0],)
        return Verdict(path, accept.draw(law(path), rng))

    return sample


def is_lenient(honest: Any) -> Any:
    def flatten(p: Any) -> Any:
        return np.sqrt(p) / np.sqrt(p).sum()

    return lambda draft, law, rng: honest(draft, lambda path: flatten(law(path)), rng)


def skips_the_bonus(honest: Any) -> Any:
    def greedy(draft: Draft, best: Any) -> Verdict:
        verdict = honest(draft, best)
        if not verdict.path or accept.children(draft, verdict.path):
            return verdict
        return Verdict(verdict.path[:-1], int(draft.tokens[verdict.path[-1]]))

    return greedy


def takes_the_bonus_from_the_row_above(honest: Any) -> Any:
    def sample(draft: Draft, law: Any, rng: Any) -> Verdict:
        verdict = honest(draft, law, rng)
        whole = verdict.path and not accept.children(draft, verdict.path)
        return replace(verdict, next_token=accept.draw(law(verdict.path[:-1]), rng)) if whole \
            else verdict  # fmt: skip

    return sample


def takes_the_next_greedy_token_from_the_row_above(honest: Any) -> Any:
    def greedy(draft: Draft, best: Any) -> Verdict:
        verdict = honest(draft, best)
        return Verdict(verdict.path, best(verdict.path[:-1]))

    return greedy


def accepts_the_first_guess(honest: Any) -> Any:
    def greedy(draft: Draft, best: Any) -> Verdict:
        path = tuple(accept.children(draft, ())[:1])
        return Verdict(path, best(path))

    return greedy


def accepts_scratch(honest: Any) -> Any:
    return lambda draft, path: honest(replace(draft, scratch=0), path)


def takes_a_certain_guess_for_a_uniform_one(honest: Any) -> Any:
    return lambda token, size: np.full(size, 1 / size)


# --- the loop -----------------------------------------------------------------------------------


class _Forgetful(list[int]):
    def __add__(self, path: Any) -> Any:
        return list(self)


def forgets_the_path(honest: Any) -> Any:
    def judge(draft: Any, scores: Any, sequence: Any, *rest: Any) -> Verdict:
        forgetful = SimpleNamespace(
            tokens=_Forgetful(sequence.tokens), generated=sequence.generated
        )
        return honest(draft, scores, forgetful, *rest)

    return judge


def sees_the_end_only_at_the_end_of_a_block(honest: Any) -> Any:
    def cut(emitted: list[int], sequence: Any, sampling: Any, limits: Any) -> Any:
        blind = sampling if emitted[-1] in sampling.end_ids else replace(sampling, end_ids=())
        return honest(emitted, sequence, blind, limits)

    return cut


def exceeds_the_length_by_a_block(honest: Any) -> Any:
    def cut(emitted: list[int], sequence: Any, sampling: Any, limits: Any) -> Any:
        kept, finish = honest(emitted, sequence, sampling, limits)
        return (emitted, finish) if finish == "length" else (kept, finish)

    return cut


# --- proposers ----------------------------------------------------------------------------------


def drops_a_guess_that_came_out_unlikely(honest: Any) -> Any:
    def propose(self: Any, limit: int) -> Draft:
        bound, self._min_confidence = self._min_confidence, 0.0
        draft = honest(self, limit)
        self._min_confidence = bound
        if draft.probs is None or not bound:
            return draft
        unlikely = draft.probs[np.arange(len(draft)), draft.tokens] < bound
        keep = int(np.argmax(unlikely)) if unlikely.any() else len(draft)
        return chain(draft.tokens[:keep], draft.probs[:keep])

    return propose


def hides_the_temperature_of_its_draws(honest: Any) -> Any:
    def propose(self: Any, limit: int) -> Draft:
        draft = honest(self, limit)
        if draft.probs is None:
            return draft
        flat = np.sqrt(draft.probs)
        return replace(draft, probs=flat / flat.sum(axis=1, keepdims=True))

    return propose


def draws_from_the_verifiers_generator(honest: Any) -> Any:
    def start(self: Any, prompt: Any, sampling: Any) -> None:
        honest(self, prompt, sampling)
        self._rng = np.random.default_rng(sampling.seed)

    return start


def guesses_beyond_the_limit(honest: Any) -> Any:
    return lambda self, limit: honest(self, limit + 1)


def puts_the_window_before_the_ngrams(honest: Any) -> Any:
    def propose(self: Any, limit: int) -> Draft:
        draft = honest(self, limit)
        count = len(draft) - draft.scratch
        order = np.array([*range(count, len(draft)), *range(count)], np.int64)
        place = np.append(np.argsort(order), ROOT)
        return replace(draft, tokens=draft.tokens[order], parents=place[draft.parents[order]])

    return propose


# --- the engine ---------------------------------------------------------------------------------


def sees_its_siblings(honest: Any) -> Any:
    return lambda parents: np.tri(len(parents), dtype=np.bool_)


def counts_nodes_for_positions(honest: Any) -> Any:
    return lambda parents: np.arange(len(parents))


def sees_beyond_its_window(honest: Any) -> Any:
    return lambda step, model, sliding_window=0: honest(step, model)


def gives_heads_each_others_slopes(honest: Any) -> Any:
    return lambda heads: honest(heads)[::-1]


def turns_heads_by_their_size(honest: Any) -> Any:
    def table(model: Any, positions: int) -> Any:
        wide = replace(model, rotary_embedding_dim=model.head_size)
        return honest(wide if model.rotary_dim else model, positions)

    return table


def hangs_nodes_one_too_high(honest: Any) -> Any:
    return lambda parents, by: np.where(parents == ROOT, by, parents + by)


def keeps_the_first_rows_instead_of_the_path(honest: Any) -> Any:
    def keep(self: Any, rows: Any) -> None:
        honest(self, np.arange(len(rows)))

    return keep


def keeps_a_row_of_a_refused_guess(honest: Any) -> Any:
    def commit(self: Any, draft: Draft, verdict: Verdict) -> None:
        honest(self, draft, verdict)
        if len(verdict.path) < len(draft):
            self._cached += 1  # the row after the path belongs to another token

    return commit


_LAWS = "tests/contract/test_laws.py"
_ENUMERATED = (_LAWS, "-k", "exactly_the_targets")
_DRAWN = (_LAWS, "-k", "fifty_thousand and draft_model")
_GREEDY = ("tests/contract/test_proposers.py",)
_ENGINE = ("tests/unit/engine/test_openvino.py",)
_FAMILIES = "tests/contract/test_families.py"
_ACCEPT = "specpipe.speculate.accept"
_LOOP = "specpipe.speculate.decode"
_DRAFT = "specpipe.speculate.draft_model:DraftModelProposer"
_RUNNER = "specpipe.engine.openvino.runner"
_VISIBILITY = "specpipe.engine.openvino.visibility"

MUTANTS: dict[str, Mutant] = {
    "resamples from p": Mutant(f"{_ACCEPT}:_residual", lambda honest: lambda p, q: p, _ENUMERATED),
    "siblings not renormalised": Mutant(
        f"{_ACCEPT}:_residual", lambda honest: lambda p, q: np.maximum(p - q, 0), _ENUMERATED
    ),
    "accepts everything": Mutant(f"{_ACCEPT}:sample", accepts_everything, _ENUMERATED),
    "lenient": Mutant(f"{_ACCEPT}:sample", is_lenient, _ENUMERATED),
    "bonus from the wrong row": Mutant(
        f"{_ACCEPT}:sample", takes_the_bonus_from_the_row_above, _ENUMERATED
    ),
    "certain guess taken for a uniform one": Mutant(
        f"{_ACCEPT}:_one_hot", takes_a_certain_guess_for_a_uniform_one, _ENUMERATED
    ),
    "no bonus": Mutant(f"{_ACCEPT}:greedy", skips_the_bonus, ("tests/unit/speculate",)),
    "greedy token from the wrong row": Mutant(
        f"{_ACCEPT}:greedy", takes_the_next_greedy_token_from_the_row_above, _GREEDY
    ),
    "first guess always accepted": Mutant(f"{_ACCEPT}:greedy", accepts_the_first_guess, _GREEDY),
    "scratch accepted": Mutant(
        f"{_ACCEPT}:children", accepts_scratch, (*_GREEDY, "-k", "no_step_accepts")
    ),
    "penalties without the path": Mutant(f"{_LOOP}:_judge", forgets_the_path, _ENUMERATED),
    "end inside a block ignored": Mutant(
        f"{_LOOP}:_cut", sees_the_end_only_at_the_end_of_a_block, _GREEDY
    ),
    "length exceeded by a block": Mutant(
        f"{_LOOP}:_cut", exceeds_the_length_by_a_block, ("tests/unit/speculate",)
    ),
    "unlikely draw dropped": Mutant(
        f"{_DRAFT}.propose", drops_a_guess_that_came_out_unlikely, _ENUMERATED
    ),
    "draft temperature hidden": Mutant(
        f"{_DRAFT}.propose", hides_the_temperature_of_its_draws, _ENUMERATED
    ),
    "draft shares the verifier's draws": Mutant(
        f"{_DRAFT}.start", draws_from_the_verifiers_generator, _DRAWN
    ),
    "limit ignored": Mutant(
        "specpipe.speculate.prompt_lookup:PromptLookupProposer.propose",
        guesses_beyond_the_limit,
        _GREEDY,
    ),
    "window before the n-grams": Mutant(
        "specpipe.speculate.lookahead:LookaheadProposer.propose",
        puts_the_window_before_the_ngrams,
        ("tests/unit/speculate",),
    ),
    "mask shows siblings": Mutant(f"{_VISIBILITY}:ancestors", sees_its_siblings, _ENGINE),
    "tree positions off": Mutant(f"{_RUNNER}:depths", counts_nodes_for_positions, _ENGINE),
    "sliding window ignored": Mutant(
        f"{_RUNNER}:mask", sees_beyond_its_window, (_FAMILIES, "-k", "window")
    ),
    "slopes of ALiBi reversed": Mutant(
        f"{_VISIBILITY}:slopes_of", gives_heads_each_others_slopes, (_FAMILIES, "-k", "rw")
    ),
    "whole heads rotated": Mutant(
        "specpipe.engine.openvino.backend:rope_table",
        turns_heads_by_their_size,
        (_FAMILIES, "-k", "share"),
    ),
    "parents off by one": Mutant(f"{_RUNNER}:_shift", hangs_nodes_one_too_high, _ENGINE),
    "first rows kept, not the path": Mutant(
        f"{_RUNNER}:OpenVinoRunner._keep", keeps_the_first_rows_instead_of_the_path, _ENGINE
    ),
    "row of a refused guess kept": Mutant(
        f"{_RUNNER}:OpenVinoRunner.commit", keeps_a_row_of_a_refused_guess, _ENGINE
    ),
}
