"""EAGLE-3: one decoder layer on hidden states of the target drafts token by token (2503.01840).

A chain follows the likeliest token at every level. A tree grows by the joint probability of its
paths: the drafter is run on the likeliest nodes of each level, and the likeliest nodes of all
levels are drafted, as in EAGLE-2 (2406.16858, section 4). The engine keeps the rows of the drafter;
the states that belong to draft tokens are kept here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from specpipe.config.speculation import Eagle3
from specpipe.core.contracts import (
    EMPTY,
    ROOT,
    Asking,
    Draft,
    Logits,
    Predict,
    Role,
    Sampling,
    Scores,
    Verdict,
    predict,
)
from specpipe.core.engines import EngineFacts
from specpipe.speculate.growth import (
    Node,
    Shares,
    after_likeliest,
    as_draft,
    as_shares,
    grow_levels,
    likeliest,
    with_ancestors,
)


@dataclass(frozen=True)
class LayerPredictor:
    """The drafter of the target, run on the `beams` likeliest nodes of each of `levels` levels."""

    tokens: Sequence[int]  # the sequence; the last is the root
    beams: int
    levels: int
    _states: dict[Node, Logits] = field(default_factory=dict)  # of the nodes that it was run on

    def after(self, level: Sequence[Node]) -> Asking[list[Shares]]:
        """Return predictions of the likeliest nodes; see `after_likeliest`."""
        return (yield from after_likeliest(level, self._states, self.beams, self.levels, self.ask))

    def ask(self, asked: Sequence[Node]) -> Asking[list[Shares]]:
        """Run the drafter on nodes whose parents it was run on; nothing if it cannot run now."""
        if not asked:
            return []
        nodes = with_ancestors(asked)
        found = yield from predict(
            Predict(
                "target",
                self.tokens,
                as_draft(nodes),
                [self._states[node.parent] for node in nodes if node.parent],
                np.array([nodes.index(n) if n.parent else ROOT for n in asked], np.int64),
            )
        )
        self._states.update(zip(asked, found.states, strict=False))
        return as_shares(found)


class Eagle3Proposer:
    """Arranges the drafter's likeliest tokens; siblings are chosen deterministically."""

    def __init__(self, options: Eagle3) -> None:
        self.draft_nodes = options.num_draft_tokens
        self._options = options
        self._tokens: list[int] = []
        self._prompt_length = 0

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Start a new sequence; the first step, which runs the prompt, has no draft."""
        self._tokens, self._prompt_length = list(prompt), len(prompt)

    def propose(self, limit: int) -> Asking[Draft]:
        """Return a chain or a tree of at most `limit` levels."""
        if limit <= 0 or len(self._tokens) == self._prompt_length:
            return EMPTY
        if self._options.tree == "chain":
            return (yield from self._chain(min(limit, self.draft_nodes)))
        return (yield from self._grown(limit))

    def _chain(self, length: int) -> Asking[Draft]:
        drafter = LayerPredictor(self._tokens, 1, length)
        path, node = list[Node](), Node(self._tokens[-1])
        while len(path) < length:
            found = yield from drafter.ask([node])
            if not found:
                break
            token, share = max(found[0].items(), key=lambda item: item[1])
            node = Node(token, node, node.chance * share, node.depth + 1)
            path.append(node)
        return as_draft(path)

    def _grown(self, limit: int) -> Asking[Draft]:
        nodes, levels = self.draft_nodes, min(limit, self._options.draft_len_per_beam)
        drafter = LayerPredictor(self._tokens, self._options.num_beams, levels)
        root = Node(self._tokens[-1])
        grown = yield from grow_levels(root, drafter.after, nodes, levels)
        return as_draft(likeliest(grown, nodes))

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Append the committed tokens."""
        self._tokens += verdict.emitted(draft)


def build(options: Eagle3, engines: Mapping[Role, EngineFacts]) -> Eagle3Proposer:
    """Return the proposer of `method: eagle3`; the drafter is part of the target's engine."""
    return Eagle3Proposer(options)
