"""One draft tree from n-gram matches and, if there are any, the predictions of heads or a drafter.

Every earlier match of the last tokens votes for the tokens that followed it; longer matches have
more weight. The predictions of the heads smooth the votes like a prior smooths counts. After a path
with W votes, a token with w votes and probability h from the heads has the probability

    (w + PRIOR * h) / (W + PRIOR)

So the heads decide where no text repeats, and the matches where much text repeats. Without heads h
is 0. The tree has the paths with the largest product of probabilities, as in Medusa (2401.10774,
section 2.3.3). Weighting continuations by frequency is an idea of SuffixDecoding (2411.04975).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from specpipe.core.contracts import EMPTY, Asking, Draft, Logits, Sampling, Scores, Verdict
from specpipe.speculate.growth import (
    Node,
    Predictor,
    Shares,
    Silent,
    as_draft,
    grow_levels,
    likeliest,
)
from specpipe.speculate.history import IndexedText
from specpipe.speculate.medusa import hidden_of_last

PRIOR = 2.0  # votes of all heads together; from 1 to 4 acceptance hardly changes
GROWTH = 4.0  # factor of a vote's weight per additional token of the match
MOST_COPIES = 64  # only the longest and latest matches vote


@dataclass
class Continuations:
    """The votes for this node, and its continuations."""

    votes: float = 0.0
    after: "dict[int, Continuations]" = field(default_factory=dict)


def find_continuations(text: IndexedText, depth: int, shortest: int, longest: int) -> Continuations:
    """Return the continuations of earlier matches of the last tokens of `text`.

    They are up to `depth` tokens long. Matches shorter than `shortest` do not vote. Matches of
    `longest` or more tokens have equal weight.
    """
    root = Continuations()
    for length, end in text.copies(longest, MOST_COPIES):
        if length < shortest:
            continue
        votes, node = GROWTH ** (length - shortest), root
        root.votes += votes
        for token in text.tokens[end + 1 : end + 1 + depth]:
            known = node.after.get(token)
            if known is None:
                known = node.after[token] = Continuations()
            node = known
            node.votes += votes
    return root


def grow_draft(
    root: int, votes: Continuations, predictor: Predictor, nodes: int, limit: int
) -> Asking[Draft]:
    """Return the most valuable tree of at most `nodes` nodes and `limit` levels.

    Unlikely nodes are not pruned here: the budget of rows decides which nodes are scored.
    """
    voted: dict[Node, Continuations] = {}

    def follow(level: Sequence[Node]) -> Asking[list[Shares]]:
        for node in level:
            behind = voted[node.parent].after.get(node.token) if node.parent else votes
            voted[node] = behind or Continuations()
        found = yield from predictor.after(level)
        rows = zip(level, found, strict=True)
        return [_chances(voted[node], shares) for node, shares in rows]

    levels = yield from grow_levels(Node(root), follow, nodes, limit)
    return as_draft(likeliest(levels, nodes))


def _chances(votes: Continuations, said: Shares) -> Shares:
    """Return the probability of each token after a node, by the formula above."""
    if not votes.votes:
        return said
    mass = {token: after.votes for token, after in votes.after.items()}
    for token, probability in said.items():
        mass[token] = mass.get(token, 0.0) + PRIOR * probability
    return {token: value / (votes.votes + PRIOR) for token, value in mass.items()}


class TreeLookup:
    """Grows a new tree at every step; the drafter that `ask` returns contributes to it."""

    def __init__(
        self,
        nodes: int,
        min_ngram: int,
        max_ngram: int,
        ask: Callable[[Sequence[int], Logits], Asking[Predictor]] | None = None,
    ) -> None:
        """Draft up to `nodes` tokens.

        `ask` returns a drafter for a sequence and the hidden state [D] before its last token.
        """
        self.draft_nodes = nodes
        self._min_ngram, self._max_ngram, self._ask = min_ngram, max_ngram, ask
        self._text = IndexedText()
        self._hidden: Logits | None = None  # [D], of the last token before the root

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Start a sequence: `prompt` is the text to search."""
        self._text, self._hidden = IndexedText(prompt), None

    def propose(self, limit: int) -> Asking[Draft]:
        """Return the tree, cut to `limit` levels; before the first step it has only matches."""
        if limit <= 0 or not self.draft_nodes:
            return EMPTY
        text, nodes = self._text, self.draft_nodes
        votes = find_continuations(text, min(limit, nodes), self._min_ngram, self._max_ngram)
        predictor = yield from self._predictor()
        return (yield from grow_draft(text.tokens[-1], votes, predictor, nodes, limit))

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Append the committed tokens and keep the hidden state for the drafter."""
        self._text.extend(verdict.emitted(draft))
        if self._ask is not None:
            self._hidden = hidden_of_last(scores, verdict)

    def _predictor(self) -> Asking[Predictor]:
        if self._ask is None or self._hidden is None:
            return Silent()
        return (yield from self._ask(self._text.tokens, self._hidden))
