"""Random drafts with logits that two sides read, the CPU engine's verdict, and a tally of both."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from specpipe.core.contracts import ROOT, Draft
from specpipe.speculate.accept import greedy

DRAFTS = 100  # of each size
VOCABULARY = 31
FOLLOWS = 0.75  # how often the target chooses a token of the draft
Tokens = tuple[int, ...]


@dataclass
class Target:
    """Logits after every path of draft tokens; fixed once they have been asked for."""

    rng: np.random.Generator
    rows: dict[Tokens, Any] = field(default_factory=dict)

    def after(self, path: Tokens, children: Sequence[int] = ()) -> Any:
        """Return the logits [V] after a path; the target may choose one of its `children`.

        Token 0 is never chosen: TensorRT-LLM's runtime pads paths with it.
        """
        if path not in self.rows:
            row = self.rng.normal(size=VOCABULARY)
            row[0] = -10.0
            if children and self.rng.random() < FOLLOWS:
                row[self.rng.choice(list(children))] += 10.0
            self.rows[path] = row
        return self.rows[path]


@dataclass
class Tally:
    """What was compared for one method."""

    name: str
    drafts: int = 0
    tokens: int = 0
    apart: list[str] = field(default_factory=list)

    def compare(self, ours: Sequence[int], theirs: Sequence[int], what: str = "") -> None:
        """Compare the emitted tokens of one draft."""
        self.drafts += 1
        self.tokens += len(ours)
        if list(ours) != list(theirs):
            self.apart.append(f"{what}{list(ours)}, upstream {list(theirs)}")

    def require_equal(self, ours: set[Tokens], theirs: set[Tokens]) -> None:
        """Compare the paths of two trees."""
        if ours != theirs:
            self.apart.append(f"trees: {sorted(ours)}, upstream {sorted(theirs)}")

    def line(self) -> str:
        """Return the result as JSON."""
        words = f"{self.drafts} drafts, {self.tokens / max(1, self.drafts):.2f} tokens a verdict"
        if self.apart:
            words += f"; {len(self.apart)} differ, e.g. {self.apart[0]}"
        good = self.drafts > 0 and not self.apart
        return json.dumps({"name": self.name, "good": good, "words": words})


def our_tokens(draft: Draft, target: Target) -> list[int]:
    """Return what the CPU engine's rule emits for a draft; fixes the logits of all its rows."""
    for nodes in ([], *node_paths(draft)):
        children = draft.tokens[draft.parents == (nodes[-1] if nodes else ROOT)]
        target.after(tokens_of(draft, nodes), children.tolist())

    def best(nodes: Sequence[int]) -> int:
        return int(np.argmax(target.after(tokens_of(draft, nodes))))

    return greedy(draft, best).emitted(draft)


def tokens_of(draft: Draft, nodes: Sequence[int]) -> Tokens:
    """Return the tokens of nodes."""
    return tuple(int(draft.tokens[node]) for node in nodes)


def node_paths(draft: Draft) -> Iterator[list[int]]:
    """Yield the nodes from the root to each node of a draft."""
    known: dict[int, list[int]] = {ROOT: []}
    for node, parent in enumerate(draft.parents.tolist()):
        known[node] = [*known[parent], node]
        yield known[node]
