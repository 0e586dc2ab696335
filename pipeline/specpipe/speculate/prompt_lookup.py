"""Prompt lookup: draft the tokens that followed an earlier match of the last tokens.

Follows Saxena's prompt lookup decoding; TensorRT-LLM calls it NGram. It needs no model. A step
without a match is a step of plain decoding.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from specpipe.config.speculation import PromptLookup
from specpipe.core.contracts import (
    EMPTY,
    Asking,
    Draft,
    Ints,
    Proposer,
    Role,
    Sampling,
    Scores,
    Verdict,
    chain,
    without_asking,
)
from specpipe.core.engines import EngineFacts
from specpipe.speculate.history import TokenArray
from specpipe.speculate.lookup_tree import TreeLookup


class PromptLookupProposer:
    """Searches prompt and output for the last n tokens, longest n first."""

    def __init__(self, num_draft_tokens: int, min_ngram: int, max_ngram: int) -> None:
        self.draft_nodes = num_draft_tokens
        self._min_ngram, self._max_ngram = min_ngram, max_ngram
        self._text = TokenArray()

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Start a sequence: `prompt` is the text to search."""
        self._text = TokenArray(prompt)

    def propose(self, limit: int) -> Asking[Draft]:
        """Return the continuation of the best earlier match, or the empty draft."""
        return without_asking(self._draft(limit))

    def _draft(self, limit: int) -> Draft:
        wanted = min(limit, self.draft_nodes)
        if wanted <= 0:
            return EMPTY
        tokens = self._text.tokens
        for n in range(min(self._max_ngram, len(tokens) - 1), self._min_ngram - 1, -1):
            begin = _continuation(tokens, n, wanted)
            if begin is not None:
                return chain(tokens[begin : begin + wanted])
        return EMPTY

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Append the committed tokens."""
        self._text.extend(verdict.emitted(draft))


def _continuation(tokens: Ints, n: int, wanted: int) -> int | None:
    """Return the index after an earlier match of the last n tokens; None without a match.

    It is the latest match that is followed by `wanted` tokens. If there is none, it is the
    earliest, which is followed by the most tokens.
    """
    begins = np.flatnonzero(tokens[n - 1 : -1] == tokens[-1]) + n
    for back in range(2, n + 1):
        begins = begins[tokens[begins - back] == tokens[-back]]
    if not len(begins):
        return None
    long_enough = begins[begins + wanted <= len(tokens)]
    return int(long_enough[-1] if len(long_enough) else begins[0])


def build(options: PromptLookup, engines: Mapping[Role, EngineFacts]) -> Proposer:
    """Return the proposer of `method: prompt_lookup`."""
    nodes = options.num_draft_tokens
    ngrams = options.min_matching_ngram_size, options.max_matching_ngram_size
    shapes: dict[str, Callable[[int, int, int], Proposer]]
    shapes = {"chain": PromptLookupProposer, "dynamic": TreeLookup}
    return shapes[options.tree](nodes, *ngrams)
