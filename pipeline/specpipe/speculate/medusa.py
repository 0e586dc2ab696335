"""Medusa: heads on the target's last hidden state draft the tokens after the next (2401.10774).

Head k, counted from 0, drafts the token k + 2 positions after the one whose hidden state it reads.
The target itself chooses the next token. So the draft tokens of head k are at depth k + 1 of the
tree.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from specpipe.config.speculation import Hybrid, Medusa
from specpipe.core.contracts import (
    EMPTY,
    ROOT,
    Asking,
    Draft,
    Logits,
    Role,
    Sampling,
    Scores,
    Verdict,
    guess,
)
from specpipe.core.engines import EngineFacts
from specpipe.core.trees import TreePath, grow_tree


class MedusaProposer:
    """Arranges the heads' likeliest tokens as a tree; siblings are chosen deterministically."""

    def __init__(self, role: Role, nodes: int, tree: Sequence[TreePath] | None) -> None:
        """Use the first `nodes` paths of the closed list `tree`; `role` is the engine with heads.

        Without a list, grow a tree at every step from the probabilities of the heads.
        """
        self.draft_nodes = nodes
        self._role = role
        self._tree = tuple(tree[:nodes]) if tree is not None else None
        self._hidden: Logits | None = None  # [D], of the last token before the root

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Start a new sequence; the first step, which runs the prompt, has no draft."""
        self._hidden = None

    def propose(self, limit: int) -> Asking[Draft]:
        """Return the draft tree, cut to `limit` levels."""
        if self._hidden is None or limit <= 0 or not self.draft_nodes:
            return EMPTY
        guesses = yield from guess(self._role, self._hidden)
        tree = self._tree
        if tree is None:
            tree = grow_tree(guesses.probs[:limit].tolist(), self.draft_nodes)
        kept = [path for path in tree if len(path) <= limit]
        nodes = {path: node for node, path in enumerate(kept)}
        tokens, probs = guesses.tokens.tolist(), guesses.probs.tolist()
        chances: dict[TreePath, float] = {(): 1.0}
        for path in kept:  # every path after the shorter ones that it begins with
            chances[path] = chances[path[:-1]] * probs[len(path) - 1][path[-1]]
        return Draft(
            np.array([tokens[len(path) - 1][path[-1]] for path in kept], np.int64),
            np.array([nodes.get(path[:-1], ROOT) for path in kept], np.int64),
            chances=np.array([chances[path] for path in kept]),
        )

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Keep the hidden state for the heads."""
        self._hidden = hidden_of_last(scores, verdict)


def hidden_of_last(scores: Scores, verdict: Verdict) -> Logits:
    """Return the hidden state [D] of the last accepted token, or of the root."""
    assert scores.hidden is not None
    hidden: Logits = scores.hidden[verdict.rows[-1]]
    return hidden


def build(options: Medusa | Hybrid, engines: Mapping[Role, EngineFacts]) -> MedusaProposer:
    """Return the proposer of `method: medusa`; the heads are part of the target's engine."""
    tree = None if isinstance(options.tree, str) else options.tree
    return MedusaProposer("target", options.num_draft_tokens, tree)
