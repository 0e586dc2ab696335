"""Lookahead decoding: the target drafts for itself (Fu et al. 2402.02057, section 3).

One step scores two trees under the root. The *verification* tree has earlier n-grams that
begin with the root's token; its nodes are ordinary draft tokens. The *window* is scratch: W columns
of N - 1 levels of Jacobi iteration. The target's best tokens after the top level complete W new
n-grams, which are added to a pool. They also become the new top level, and level 0 is dropped.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from specpipe.config.speculation import Lookahead
from specpipe.core.contracts import (
    EMPTY,
    ROOT,
    Asking,
    Draft,
    Ints,
    Role,
    Sampling,
    Scores,
    Verdict,
    without_asking,
)
from specpipe.core.engines import EngineFacts


class Pool:
    """For every first token, the `most` n-grams that were seen last."""

    def __init__(self, most: int, end_ids: Sequence[int]) -> None:
        self._most, self._end_ids = most, frozenset(end_ids)
        self._after: dict[int, dict[tuple[int, ...], None]] = {}

    def add(self, ngram: Sequence[int]) -> None:
        """Add an n-gram; n-grams with an end token are ignored."""
        if not self._end_ids.isdisjoint(ngram):
            return
        known = self._after.setdefault(ngram[0], {})
        rest = tuple(ngram[1:])
        known.pop(rest, None)
        known[rest] = None  # a dict keeps its order: the least recently seen comes first
        if len(known) > self._most:
            del known[next(iter(known))]

    def after(self, token: int) -> list[tuple[int, ...]]:
        """Return the tokens that followed `token`, the latest n-gram first."""
        return list(reversed(self._after.get(token, {})))


def merge(ngrams: Iterable[Sequence[int]], depth: int) -> tuple[list[int], list[int]]:
    """Merge n-grams into a tree of at most `depth` levels; returns its tokens and parents.

    Equal prefixes become one path, so a token occurs at most once under its parent. A draft token
    chosen deterministically must not occur twice, or it would be rejected twice.
    """
    nodes: dict[tuple[int, int], int] = {}
    for ngram in ngrams:
        at = ROOT
        for token in ngram[:depth]:
            at = nodes.setdefault((at, token), len(nodes))
    return [token for _, token in nodes], [parent for parent, _ in nodes]


class Window:
    """W columns of `height` N - 1 levels of draft tokens.

    Level 0 is a chain whose first column is the root. The parent of a token of level l is the token
    of level l - 1 in its column. So a token attends to level 0 up to its column, and to its own
    column: the mask of the paper's figure 2(b). Its depth, column + level, is its position.
    """

    def __init__(self, height: int, levels: Iterable[Sequence[int]]) -> None:
        """Start with some levels; each step fills one of the others.

        Filling a level costs a column, so the first levels need one more column per missing level.
        """
        self._height = height
        self.levels = [list(level) for level in levels]  # level 0 is stored without the root

    def __len__(self) -> int:
        return sum(map(len, self.levels))

    def nodes(self, begin: int) -> tuple[list[int], list[int]]:
        """Return tokens and parents of the nodes, which follow `begin` other nodes in a draft."""
        tokens = [token for level in self.levels for token in level]
        rows = self._rows(begin)
        parents = [*rows[0][:-1], *(node for level in rows[:-1] for node in level)]
        return tokens, parents

    def top(self, begin: int) -> Ints:
        """Return the nodes of the highest level, column by column; ROOT for the root."""
        return np.asarray(self._rows(begin)[-1], np.int64)

    def _rows(self, begin: int) -> list[list[int]]:
        """Number the nodes of every level, including the root's column."""
        rows, behind = [], begin
        for level, tokens in enumerate(self.levels):
            ids = list(range(behind, behind + len(tokens)))
            rows.append(ids if level else [ROOT, *ids])
            behind += len(tokens)
        return rows

    def advance(self, root: int, outputs: Sequence[int]) -> list[tuple[int, ...]]:
        """Move on by one position; `outputs` are the target's tokens after the top level.

        Returns the W completed n-grams; none while levels are still to be filled.
        """
        if len(self.levels) < self._height:
            self.levels = [list(level[1:]) for level in (*self.levels, outputs)]
            return []
        levels = [[root, *self.levels[0]], *self.levels[1:], list(outputs)]
        self.levels = [levels[1][1:], *levels[2:]]
        return list(zip(*levels, strict=True))


def first_levels(options: Lookahead, draw: Callable[[int], list[int]]) -> list[list[int]]:
    """Return the first levels of a window; `draw(n)` returns n tokens.

    As in the paper, that is level 0 only, with N - 2 columns more than the window. If N > W + 2, it
    would exceed the size of the full window, which engines are built for. Then all levels are
    drawn.
    """
    columns, missing = options.window_size, options.ngram_size - 2
    if missing <= columns:
        return [draw(columns - 1 + missing)]
    return [draw(columns - 1), *(draw(columns) for _ in range(missing))]


class LookaheadProposer:
    """Drafts n-grams of prompt, output and window; needs no second model.

    As in TensorRT-LLM, the window moves on by one position per step, for any number of accepted
    tokens.
    """

    def __init__(self, options: Lookahead) -> None:
        self.draft_nodes = options.num_draft_tokens
        self._options = options
        self._tokens: list[int] = []

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Fill the pool from the prompt, and the window with tokens drawn from it."""
        if not self.draft_nodes:
            return
        options = self._options
        self._tokens = []
        self._pool = Pool(options.verification_set_size, sampling.end_ids)
        # Drafting must be independent of the verifier's draws: a child of the same seed.
        rng = np.random.default_rng([sampling.seed, 1])
        source = np.asarray(prompt, np.int64)
        levels = first_levels(options, lambda count: rng.choice(source, count).tolist())
        self._window = Window(options.ngram_size - 1, levels)
        self._append(prompt)

    def propose(self, limit: int) -> Asking[Draft]:
        """Return the n-grams that begin with the last token, cut to `limit`, and the window."""
        return without_asking(self._draft(limit))

    def _draft(self, limit: int) -> Draft:
        if limit <= 0 or not self.draft_nodes:
            return EMPTY
        tokens, parents = merge(self._pool.after(self._tokens[-1]), limit)
        guesses, places = self._window.nodes(len(tokens))
        return Draft(
            np.array([*tokens, *guesses], np.int64),
            np.array([*parents, *places], np.int64),
            scratch=len(guesses),
        )

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Move the window on and add the n-grams of the committed tokens."""
        if not self.draft_nodes:
            return
        if draft.scratch == len(self._window):  # else the step scored no window
            rows = self._window.top(len(draft) - draft.scratch) + 1
            outputs = np.argmax(scores.logits[rows], axis=1).tolist()
            for ngram in self._window.advance(self._tokens[-1], outputs):
                self._pool.add(ngram)
        self._append(verdict.emitted(draft))

    def _append(self, tokens: Sequence[int]) -> None:
        size = self._options.ngram_size
        before = len(self._tokens)
        self._tokens += tokens
        for end in range(max(before + 1, size), len(self._tokens) + 1):
            self._pool.add(self._tokens[end - size : end])


def build(options: Lookahead, engines: Mapping[Role, EngineFacts]) -> LookaheadProposer:
    """Return the proposer of `method: lookahead`; it needs no second engine."""
    return LookaheadProposer(options)
