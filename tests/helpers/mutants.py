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

from specpipe.core.contracts import ROOT, Asking, Draft, Verdict, chain
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
    def sample(draft: Draft, target: Any, rng: Any) -> Verdict:
        path: accept.Path = ()
        while found := accept.children(draft, path):
            path += (found[0],)
        return Verdict(path, accept.draw(target(path), rng))

    return sample


def is_lenient(honest: Any) -> Any:
    def flatten(p: Any) -> Any:
        return np.sqrt(p) / np.sqrt(p).sum()

    return lambda draft, target, rng: honest(draft, lambda path: flatten(target(path)), rng)


def skips_the_bonus(honest: Any) -> Any:
    def greedy(draft: Draft, best: Any) -> Verdict:
        verdict = honest(draft, best)
        if not verdict.path or accept.children(draft, verdict.path):
            return verdict
        return Verdict(verdict.path[:-1], int(draft.tokens[verdict.path[-1]]))

    return greedy


def takes_the_bonus_from_the_row_above(honest: Any) -> Any:
    def sample(draft: Draft, target: Any, rng: Any) -> Verdict:
        verdict = honest(draft, target, rng)
        whole = verdict.path and not accept.children(draft, verdict.path)
        return replace(verdict, next_token=accept.draw(target(verdict.path[:-1]), rng)) if whole \
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
    return lambda draft, best: honest(replace(draft, scratch=0), best)


def accepts_any_sibling(honest: Any) -> Any:
    def greedy(draft: Draft, best: Any) -> Verdict:
        path: accept.Path = ()
        while True:
            token, siblings = best(path), accept.children(draft, path)
            if token not in draft.tokens[siblings]:
                return Verdict(path, token)
            path += (siblings[0],)

    return greedy


def accepts_a_cousin(honest: Any) -> Any:
    def greedy(draft: Draft, best: Any) -> Verdict:
        level, path = accept.children(draft, ()), ()
        while True:
            token = best(path)
            match = next((c for c in level if draft.tokens[c] == token), None)
            if match is None:
                return Verdict(path, token)
            level = [c for node in level for c in accept.children(draft, (node,))]
            path += (match,)

    return greedy


def draws_the_bonus_twice(honest: Any) -> Any:
    def greedy(draft: Draft, best: Any) -> Verdict:
        verdict = honest(draft, best)
        return Verdict(verdict.path, best(verdict.path)) if len(draft) else verdict

    return greedy


def draws_for_the_whole_draft(honest: Any) -> Any:
    """Lossless, but the output with a seed depends on the draft."""

    def greedy(draft: Draft, best: Any) -> Verdict:
        drawn = {path: best(path) for path in _paths(draft)}
        return honest(draft, lambda path: drawn[path])

    return greedy


def _paths(draft: Draft) -> list[accept.Path]:
    paths: list[accept.Path] = [()]
    for path in paths:
        paths += [(*path, child) for child in accept.children(draft, path)]
    return paths


def gives_the_first_nodes(honest: Any) -> Any:
    return lambda draft, nodes: honest(draft, np.arange(len(nodes)))


def draws_once_per_child(honest: Any) -> Any:
    def greedy(draft: Draft, best: Any) -> Verdict:
        path: accept.Path = ()
        while True:
            match = [c for c in accept.children(draft, path) if best(path) == draft.tokens[c]]
            if not match:
                return Verdict(path, best(path))
            path += (match[0],)

    return greedy


# --- the loop -----------------------------------------------------------------------------------


class _Forgetful(list[int]):
    def __add__(self, path: Any) -> Any:
        return list(self)


def forgets_the_path(honest: Any) -> Any:
    def judge(draft: Any, scores: Any, sequence: Any, *rest: Any) -> Verdict:
        forgetful = SimpleNamespace(
            tokens=_Forgetful(sequence.tokens),
            generated=sequence.generated,
            constraint=sequence.constraint,
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
    def propose(self: Any, limit: int) -> Asking[Draft]:
        bound, self._min_confidence = self._min_confidence, 0.0
        draft = yield from honest(self, limit)
        self._min_confidence = bound
        if draft.probs is None or not bound:
            return draft
        unlikely = draft.probs[np.arange(len(draft)), draft.tokens] < bound
        keep = int(np.argmax(unlikely)) if unlikely.any() else len(draft)
        return chain(draft.tokens[:keep], draft.probs[:keep])

    return propose


def hides_the_temperature_of_its_draws(honest: Any) -> Any:
    def propose(self: Any, limit: int) -> Asking[Draft]:
        draft = yield from honest(self, limit)
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
    def draft(self: Any, limit: int) -> Draft:
        draft = honest(self, limit)
        count = len(draft) - draft.scratch
        order = np.array([*range(count, len(draft)), *range(count)], np.int64)
        place = np.append(np.argsort(order), ROOT)
        return replace(draft, tokens=draft.tokens[order], parents=place[draft.parents[order]])

    return draft


# --- the engine ---------------------------------------------------------------------------------


def sees_its_siblings(honest: Any) -> Any:
    return lambda parents: np.tri(len(parents), dtype=np.uint8)


def misses_its_first_ancestor(honest: Any) -> Any:
    def ancestors(parents: Any) -> Any:
        seen = honest(parents)
        for row in range(len(seen)):
            seen[row, seen[row].argmax()] = 0
            seen[row, row] = 1
        return seen

    return ancestors


def counts_nodes_for_positions(honest: Any) -> Any:
    return lambda parents: np.arange(len(parents))


def sees_beyond_its_window(honest: Any) -> Any:
    return lambda seen, positions, window: honest(seen, positions, 0)


def gives_heads_each_others_slopes(honest: Any) -> Any:
    return lambda heads: honest(heads)[::-1]


def turns_heads_by_their_size(honest: Any) -> Any:
    def table(model: Any, positions: int) -> Any:
        wide = replace(model, rotary_embedding_dim=model.head_size)
        return honest(wide if model.rotary_dim else model, positions)

    return table


def hangs_nodes_one_too_high(honest: Any) -> Any:
    def part(item: Any) -> Any:
        if item.parents is None:
            return honest(item)
        return honest(replace(item, parents=np.where(item.parents > 0, item.parents - 1, ROOT)))

    return part


def keeps_a_row_of_a_refused_guess(honest: Any) -> Any:
    def keep(self: Any, rows: Any) -> None:
        after = rows[-1:] + 1  # belongs to another token
        honest(self, np.append(rows, after[after < len(self.fresh)]))

    return keep


def _arrays_of(change: Callable[[Any], dict[str, Any]]) -> Callable[[Any], Any]:
    """Return a mutant of `paged_arrays`, which runs after the checks; `change` gives fields."""
    return lambda honest: lambda batch: honest(replace(batch, **change(batch)))


def masks_of_neighbours(batch: Any) -> dict[str, Any]:
    trees = [i for i, seen in enumerate(batch.seen) if seen is not None]
    seen = list(batch.seen)
    for i, other in zip(trees, reversed(trees), strict=True):
        seen[i] = batch.seen[other]
    return {"seen": seen}


def tables_of_neighbours(batch: Any) -> dict[str, Any]:
    table, begins, sizes = batch.table.copy(), batch.table_begins, np.diff(batch.table_begins)
    for one in range(len(sizes) - 1):
        if sizes[one] == sizes[one + 1]:
            begin, middle, end = begins[one : one + 3]
            table[begin:end] = [*batch.table[middle:end], *batch.table[begin:middle]]
            break
    return {"table": table}


def forgets_the_last_cached_row(batch: Any) -> dict[str, Any]:
    return {"past": np.maximum(batch.past - 1, 0)}


def forgets_the_rows_before(honest: Any) -> Any:
    return lambda part, begin, end: replace(honest(part, begin, end), before=part.before)


def begins_one_row_early(honest: Any) -> Any:
    def lay_out(parts: Any, least: int = 1) -> Any:
        batch = honest(parts, least)
        inner = (np.arange(len(batch.begins)) > 0) & (batch.begins < batch.begins[-1])
        return replace(batch, begins=batch.begins - inner)

    return lay_out


def picks_rows_of_neighbours(honest: Any) -> Any:
    return property(lambda self: np.roll(honest.fget(self), 1))


# --- the batch ----------------------------------------------------------------------------------


def resumes_one_token_short(honest: Any) -> Any:
    def follow(self: Any, tokens: Any) -> None:
        fresh = self.cache is None
        honest(self, tokens)
        if fresh and len(self.pending) > 1:
            del self.pending[0]

    return follow


def takes_the_first_child_for_the_path(honest: Any) -> Any:
    def path(self: Any, tokens: Any) -> Any:
        rows = honest(self, tokens)
        siblings = np.flatnonzero(self.parents == (self.parents[rows[-1]] if rows else ROOT))
        return [*rows[:-1], int(siblings[0])] if rows else rows

    return path


def keeps_rows_of_another_text(honest: Any) -> Any:
    return lambda kept, tokens, limit: min(len(kept), limit)


def answers_streams_in_the_wrong_order(honest: Any) -> Any:
    def answer_all(self: Any, streams: Any, call: Any) -> None:
        honest(self, streams, lambda asked: list(reversed(call(asked))))

    return answer_all


def forgets_which_nodes_were_cut(honest: Any) -> Any:
    def only(draft: Any, nodes: Any) -> Any:
        return honest(
            draft, None if nodes is None else nodes[::-1][::-1][-1:] if len(nodes) else nodes
        )

    return only


def reads_features_of_the_row_before(honest: Any) -> Any:
    return lambda self, first, end: np.roll(honest(self, first, end), 1)


def feeds_every_node_the_state_of_the_root(honest: Any) -> Any:
    def rows(self: Any, branch: Any) -> Any:
        return honest(self, replace(branch, states=[branch.states[0]] * len(branch.states)))

    return lambda self, branch: rows(self, branch) if len(branch.states) else honest(self, branch)


# --- the pool of KV blocks -----------------------------------------------------------------------


def never_copies(honest: Any) -> Any:
    return lambda self, block, users: False


def trusts_the_hash(honest: Any) -> Any:
    return lambda self, parent, tokens: True


def rewrites_an_indexed_block(honest: Any) -> Any:
    def writable(self: Any, block: int) -> int:
        entry = self._index.at(block)
        found: int = honest(self, block)
        if entry is not None and found == block:
            self._index.add(entry)
        return found

    return writable


def forks_without_a_user(honest: Any) -> Any:
    def fork(self: Any, length: int | None = None) -> Any:
        twin = honest(self, length)
        for block in twin.blocks:
            self._pool.give_back(block)
        return twin

    return fork


def moves_a_sibling(honest: Any) -> Any:
    return lambda self, rows: honest(self, rows - (rows != np.arange(len(rows))))


def finds_the_last_token(honest: Any) -> Any:
    return lambda self, tokens=(): honest(self, [*tokens, 0])


# --- grammars ------------------------------------------------------------------------------------


def masks_with_the_parent(honest: Any) -> Any:
    return lambda self, path: honest(self, path[:-1])


def masks_one_step_late(honest: Any) -> Any:
    """Commit the tokens of a step only with the next one."""

    def commit(self: Any, tokens: Any) -> None:
        late, self.late = getattr(self, "late", ()), tokens
        honest(self, late)

    return commit


def feeds_the_end_token(honest: Any) -> Any:
    def after(self: Any, place: Any, token: int) -> Any:
        matcher = place.matcher.copy()
        return replace(place, matcher=matcher) if matcher.feed(token) else None

    return after


def walks_without_copies(honest: Any) -> Any:
    def after(self: Any, place: Any, token: int) -> Any:
        return place if place.matcher.feed(token) else None

    return after


def masks_the_target_softly(honest: Any) -> Any:
    return lambda logits, mask: logits if mask is None else np.where(mask, logits, logits - 2)


def ends_anywhere(honest: Any) -> Any:
    return property(lambda self: True)


_DISTRIBUTIONS = "tests/contract/test_distributions.py"
_ENUMERATED = (_DISTRIBUTIONS, "-k", "exactly_the_targets")
_SEEDED = ("tests/contract/test_proposers.py", "-k", "with_a_seed")
_DRAWN = (_DISTRIBUTIONS, "-k", "twenty_thousand and draft_model")
_GREEDY = ("tests/contract/test_proposers.py",)
_ENGINE = ("tests/unit/engine/test_openvino.py",)
_INVARIANT = ("tests/unit/engine/test_invariance.py",)
_LAYER = ("tests/unit/engine/test_layer_drafter.py",)
_DRAFTER = "specpipe.engine.openvino.layer_drafter"
_FAMILIES = "tests/contract/test_families.py"
_BATCH = ("tests/unit/runtime",)
_POOL = ("tests/unit/engine/test_blocks.py", "tests/unit/engine/test_block_schedules.py")
_GRAMMARS = ("tests/contract/test_grammars.py",)
_ACCEPT = "specpipe.speculate.accept"
_CONSTRAINT = "specpipe.speculate.constrained:Constraint"
_LOOP = "specpipe.speculate.decode"
_DRAFT = "specpipe.speculate.draft_model:DraftModelProposer"
_LAYOUT = "specpipe.engine.openvino.batch"
_PAGED = "specpipe.engine.openvino.engine:paged_arrays"
_BLOCKS = "specpipe.engine.openvino.blocks"

MUTANTS: dict[str, Mutant] = {
    "resamples from p": Mutant(f"{_ACCEPT}:residual", lambda honest: lambda p, q: p, _ENUMERATED),
    "siblings not renormalised": Mutant(
        f"{_ACCEPT}:residual",
        lambda honest: lambda p, q: np.maximum(p - q, 0),
        ("tests/unit/speculate/test_accept.py",),
    ),
    "accepts everything": Mutant(f"{_ACCEPT}:sample", accepts_everything, _ENUMERATED),
    "lenient": Mutant(f"{_ACCEPT}:sample", is_lenient, _ENUMERATED),
    "bonus from the wrong row": Mutant(
        f"{_ACCEPT}:sample", takes_the_bonus_from_the_row_above, _ENUMERATED
    ),
    "any sibling accepted": Mutant(f"{_ACCEPT}:greedy", accepts_any_sibling, _ENUMERATED),
    "cousin accepted": Mutant(f"{_ACCEPT}:greedy", accepts_a_cousin, _ENUMERATED),
    "bonus drawn twice": Mutant(f"{_ACCEPT}:greedy", draws_the_bonus_twice, _ENUMERATED),
    "drawn once per child": Mutant(f"{_ACCEPT}:greedy", draws_once_per_child, _ENUMERATED),
    "draws in another order": Mutant(f"{_ACCEPT}:greedy", draws_for_the_whole_draft, _SEEDED),
    "cut nodes judged": Mutant(
        "specpipe.core.contracts:Draft.only", gives_the_first_nodes, (*_GREEDY, "-k", "scored")
    ),
    "no bonus": Mutant(f"{_ACCEPT}:greedy", skips_the_bonus, ("tests/unit/speculate",)),
    "greedy token from the wrong row": Mutant(
        f"{_ACCEPT}:greedy", takes_the_next_greedy_token_from_the_row_above, _GREEDY
    ),
    "first guess always accepted": Mutant(f"{_ACCEPT}:greedy", accepts_the_first_guess, _GREEDY),
    "scratch accepted": Mutant(
        f"{_ACCEPT}:greedy", accepts_scratch, (*_GREEDY, "-k", "no_step_accepts")
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
        "specpipe.speculate.lookahead:LookaheadProposer._draft",
        puts_the_window_before_the_ngrams,
        ("tests/unit/speculate",),
    ),
    "mask shows siblings": Mutant(f"{_LAYOUT}:ancestors", sees_its_siblings, _ENGINE),
    "mask one ancestor short": Mutant(f"{_LAYOUT}:ancestors", misses_its_first_ancestor, _ENGINE),
    "mask of a neighbour": Mutant(_PAGED, _arrays_of(masks_of_neighbours), _ENGINE),
    "block tables swapped": Mutant(_PAGED, _arrays_of(tables_of_neighbours), _ENGINE),
    "cached rows off by one": Mutant(_PAGED, _arrays_of(forgets_the_last_cached_row), _ENGINE),
    "row of a chain without those before it": Mutant(
        f"{_LAYOUT}:Part.piece", forgets_the_rows_before, _ENGINE
    ),
    "piece of a chain without the rows before it": Mutant(
        f"{_LAYOUT}:Part.piece", forgets_the_rows_before, _INVARIANT
    ),
    "first rows off by one": Mutant(
        "specpipe.engine.openvino.engine:lay_out", begins_one_row_early, _ENGINE
    ),
    "positions by row": Mutant(f"{_LAYOUT}:depths", counts_nodes_for_positions, _ENGINE),
    "sliding window ignored": Mutant(
        "specpipe.engine.openvino.masks:mask", sees_beyond_its_window, (_FAMILIES, "-k", "window")
    ),
    "slopes of ALiBi reversed": Mutant(
        "specpipe.engine.openvino.padded:slopes_of",
        gives_heads_each_others_slopes,
        (_FAMILIES, "-k", "rw"),
    ),
    "rows of padded layers lost": Mutant(
        "specpipe.engine.openvino.storage:KVStorage.write",
        lambda honest: lambda self, layers, slots, rows: None,
        (_FAMILIES, "-k", "rw"),
    ),
    "whole heads rotated": Mutant(
        "specpipe.engine.openvino.rope:rope_table",
        turns_heads_by_their_size,
        (_FAMILIES, "-k", "share"),
    ),
    "parents off by one": Mutant(
        "specpipe.engine.openvino.engine:_part", hangs_nodes_one_too_high, _ENGINE
    ),
    "rows kept where they are": Mutant(
        f"{_BLOCKS}:BlockCache._move",
        lambda honest: lambda self, rows: None,
        _ENGINE,
    ),
    "row of a refused guess kept": Mutant(
        f"{_BLOCKS}:BlockCache.keep", keeps_a_row_of_a_refused_guess, _ENGINE
    ),
    "doubled rows swapped": Mutant(
        "specpipe.engine.openvino.batch:Batch.spread", picks_rows_of_neighbours, _INVARIANT
    ),
    "single rows not doubled": Mutant(
        "specpipe.engine.openvino.load:PoolOptions",
        lambda honest: lambda *fields: replace(honest(*fields), batch_invariant=False),
        _INVARIANT,
    ),
    "resumed one token short": Mutant(
        "specpipe.runtime.lane:Lane.follow", resumes_one_token_short, _BATCH
    ),
    "sibling kept instead of the path": Mutant(
        "specpipe.runtime.lane:_Rows.path", takes_the_first_child_for_the_path, _BATCH
    ),
    "rows of another text kept": Mutant(
        "specpipe.runtime.lane:_common", keeps_rows_of_another_text, _BATCH
    ),
    "drafters' answers swapped": Mutant(
        "specpipe.runtime.batcher:Batcher._answer_all", answers_streams_in_the_wrong_order, _BATCH
    ),
    "another node scored than was kept": Mutant(
        "specpipe.runtime.packing:_only", forgets_which_nodes_were_cut, _BATCH
    ),
    "features of the row before": Mutant(
        f"{_BLOCKS}:BlockCache.kept_slots", reads_features_of_the_row_before, _LAYER
    ),
    "features of rejected rows": Mutant(
        "specpipe.engine.openvino.storage:KVStorage.write_features",
        lambda honest: lambda self, slots, rows: honest(self, slots[:-1], rows[:-1]),
        _LAYER,
    ),
    "state of the root for every node": Mutant(
        f"{_DRAFTER}:LayerDrafter._rows", feeds_every_node_the_state_of_the_root, _LAYER
    ),
    "drafter's rows of another text": Mutant(
        f"{_DRAFTER}:_common", lambda honest: lambda kept, tokens: len(kept), _LAYER
    ),
    "no copy on write": Mutant(f"{_BLOCKS}:BlockPool.copies", never_copies, _POOL),
    "block found by its hash only": Mutant(
        "specpipe.engine.openvino.prefixes:PrefixEntry.matches", trusts_the_hash, _POOL
    ),
    "indexed block rewritten": Mutant(
        f"{_BLOCKS}:BlockPool._writable", rewrites_an_indexed_block, _POOL
    ),
    "last token found in the cache": Mutant(
        f"{_BLOCKS}:BlockPool.open", finds_the_last_token, _POOL
    ),
    "fork without a user": Mutant(f"{_BLOCKS}:BlockCache.fork", forks_without_a_user, _POOL),
    "mask of the parent": Mutant(f"{_CONSTRAINT}.mask", masks_with_the_parent, _GRAMMARS),
    "mask one step late": Mutant(f"{_CONSTRAINT}.commit", masks_one_step_late, _GRAMMARS),
    "end token fed to the grammar": Mutant(
        f"{_CONSTRAINT}._after", feeds_the_end_token, ("tests/unit/speculate/test_constrained.py",)
    ),
    "ends where the grammar does not": Mutant(
        "specpipe.speculate.constrained:_Place.accepts", ends_anywhere, _GRAMMARS
    ),
    "siblings share a matcher": Mutant(f"{_CONSTRAINT}._after", walks_without_copies, _GRAMMARS),
    "forbidden tokens made unlikely": Mutant(
        "specpipe.speculate.decode:permitted", masks_the_target_softly, _GRAMMARS
    ),
    "row of a sibling moved": Mutant(f"{_BLOCKS}:BlockCache._move", moves_a_sibling, _POOL),
}
