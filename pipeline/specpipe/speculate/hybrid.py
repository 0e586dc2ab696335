"""Two sources of drafts: prompt lookup with a fallback, or both merged into one draft tree.

Lossless like its parts, since the choice of the source depends only on committed tokens.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from specpipe.config.speculation import Hybrid
from specpipe.core.contracts import (
    Asking,
    Draft,
    Logits,
    Proposer,
    Role,
    Sampling,
    Scores,
    Verdict,
    guess,
)
from specpipe.core.engines import EngineFacts
from specpipe.speculate import medusa
from specpipe.speculate.draft_model import guided_by
from specpipe.speculate.eagle3 import LayerPredictor
from specpipe.speculate.growth import Heads, Predictor, Recurrent
from specpipe.speculate.lookup_tree import TreeLookup
from specpipe.speculate.prompt_lookup import PromptLookupProposer


class HybridProposer:
    """Drafts with `first`, or with `second` if that draft is empty; both observe every step."""

    def __init__(self, first: Proposer, second: Proposer) -> None:
        self.draft_nodes = max(first.draft_nodes, second.draft_nodes)
        self._first, self._second = first, second

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Start both."""
        self._first.start(prompt, sampling)
        self._second.start(prompt, sampling)

    def propose(self, limit: int) -> Asking[Draft]:
        """Return the first draft that has acceptable tokens."""
        draft = yield from self._first.propose(limit)
        return draft if draft.depth else (yield from self._second.propose(limit))

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Pass the committed tokens to both."""
        self._first.observe(draft, scores, verdict)
        self._second.observe(draft, scores, verdict)


def build(options: Hybrid, engines: Mapping[Role, EngineFacts]) -> Proposer:
    """Return the proposer of `method: hybrid`."""
    nodes = options.num_draft_tokens
    ngrams = options.min_matching_ngram_size, options.max_matching_ngram_size
    if options.grows_trees:
        return TreeLookup(nodes, *ngrams, partial(_predictor, options))
    return HybridProposer(PromptLookupProposer(nodes, *ngrams), _second(options, engines))


def _predictor(options: Hybrid, tokens: Sequence[int], hidden: Logits) -> Asking[Predictor]:
    """Return the drafter that contributes nodes to a tree; see `TreeLookup`."""
    if (layer := options.eagle3) is not None:
        return LayerPredictor(tokens, layer.num_beams, layer.draft_len_per_beam)
    if (drafter := options.redrafter) is None:
        return Heads((yield from guess("target", hidden)))
    return Recurrent("target", hidden, drafter.num_beams, drafter.draft_len_per_beam)


def _second(options: Hybrid, engines: Mapping[Role, EngineFacts]) -> Proposer:
    if options.draft is None:
        return medusa.build(options, engines)
    return guided_by(options, engines["draft"])
