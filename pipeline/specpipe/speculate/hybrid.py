"""Two sources of drafts: prompt lookup with a fallback, or both merged into one draft tree.

Lossless like its parts, since the choice of the source depends only on committed tokens.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from specpipe.contracts import Draft, Logits, Proposer, Role, Runner, Sampling, Scores, Verdict
from specpipe.methods import Hybrid
from specpipe.speculate import medusa
from specpipe.speculate.draft_model import guided_by
from specpipe.speculate.growth import Guesser, Heads, Recurrent
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

    def propose(self, limit: int) -> Draft:
        """Return the first draft that has acceptable tokens."""
        draft = self._first.propose(limit)
        return draft if draft.depth else self._second.propose(limit)

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Pass the committed tokens to both."""
        self._first.observe(draft, scores, verdict)
        self._second.observe(draft, scores, verdict)


def build(options: Hybrid, runners: Mapping[Role, Runner]) -> Proposer:
    """Return the proposer of `method: hybrid`; `runners` has those of its second source."""
    nodes = options.num_draft_tokens
    ngrams = options.min_matching_ngram_size, options.max_matching_ngram_size
    if options.grows_trees:
        return TreeLookup(nodes, *ngrams, partial(_guesser, options, runners["target"]))
    return HybridProposer(PromptLookupProposer(nodes, *ngrams), _second(options, runners))


def _guesser(options: Hybrid, target: Runner, hidden: Logits) -> Guesser:
    """Return the drafter that contributes nodes to a tree, given the hidden state [D]."""
    if (drafter := options.redrafter) is None:
        return Heads(target.guess(hidden))
    return Recurrent(target, hidden, drafter.num_beams, drafter.draft_len_per_beam)


def _second(options: Hybrid, runners: Mapping[Role, Runner]) -> Proposer:
    if options.draft is None:
        return medusa.build(options, runners)
    return guided_by(options, runners["draft"])
