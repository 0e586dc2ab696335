"""The speculation methods as records: `method:` and only the keys of that method.

The text under a field documents its key: `scripts/write-docs` makes docs/configuration.md from it.
To add a method, write its record here, add it to `Speculation`, and see `assembly.PROPOSERS`.

Not here: methods without a proposer of specpipe; see `upstream_methods`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from specpipe.config.keys import at_least, between, formerly, value_formerly
from specpipe.config.method_parts import (
    DraftOptions,
    Eagle3Draft,
    Eagle3Options,
    ReDrafterOptions,
    SuffixOptions,
    TreeOption,
)
from specpipe.config.upstream_methods import (
    DFlash,
    Eagle,
    MultiToken,
    Pard,
    Suffix,
    SuffixAutomaton,
)

_CONFIDENCE = value_formerly("confidence", {"draft_length": "adaptive", "min_confidence": "0.4"})


@dataclass(frozen=True)
class NoSpeculation:
    """Plain decoding: one token per step."""

    method: Literal["none"] = "none"

    @property
    def num_draft_tokens(self) -> int:
        """Nothing is drafted."""
        return 0

    @property
    def max_concurrency(self) -> None:
        """There is no speculation to limit."""
        return None


@dataclass(frozen=True)
class PromptLookup:
    """Draft tokens copied from an earlier occurrence of the last tokens in prompt or output."""

    method: Literal["prompt_lookup"]
    num_draft_tokens: int = field(default=4, metadata=between(1, 64))
    """Most draft tokens per step: length of the chain, or nodes of the tree."""
    min_matching_ngram_size: int = field(default=2, metadata=between(1, 16))
    """Shortest n-gram that counts as a match."""
    max_matching_ngram_size: int = field(default=3, metadata=between(1, 16))
    """Longest n-gram, which is tried first."""
    tree: Literal["chain", "dynamic"] = "chain"
    """`chain`: what followed the best match, as TensorRT-LLM's NGram does. `dynamic`: a tree of
    what followed all matches, most likely first."""
    draft_length: Literal["adaptive", "fixed"] | None = None
    """`adaptive`: a step scores the draft tokens that pay at the present load and acceptance.
    `fixed`: all of them. Default: `adaptive` on `openvino`."""
    max_concurrency: int | None = field(default=None, metadata=at_least(1))
    """Draft nothing while more sequences than this are running. Default: no limit."""


@dataclass(frozen=True)
class DraftModel:
    """Drafts of a smaller model with the same tokenizer."""

    method: Literal["draft_model"]
    draft: DraftOptions
    num_draft_tokens: int = field(default=4, metadata=between(1, 64))
    """Most draft tokens per step: length of the chain."""
    draft_length: Literal["adaptive", "fixed"] | None = field(default=None, metadata=_CONFIDENCE)
    """As for method `prompt_lookup`."""
    min_confidence: float | None = field(default=None, metadata=between(0, 1))
    """The draft ends where the probability of the draft model's most likely token is below this.
    Default: it does not end early."""
    max_concurrency: int | None = field(default=None, metadata=at_least(1))
    """Draft nothing while more sequences than this are running. Default: no limit."""


@dataclass(frozen=True)
class Hybrid:
    """Prompt lookup with a second source: give `draft`, `heads`, `redrafter` or `eagle3`.

    A draft model, or heads without `tree: dynamic`, draft when prompt lookup finds no match. A
    ReDrafter, an EAGLE-3 drafter, or heads with `tree: dynamic`, are merged with the matches into
    one tree.
    """

    method: Literal["hybrid"]
    draft: DraftOptions | None = None
    num_draft_tokens: int = field(default=4, metadata=between(1, 64))
    """Most draft tokens per step: length of the chain of either source, or nodes of the merged
    tree."""
    min_matching_ngram_size: int = field(default=2, metadata=between(1, 16))
    """Shortest n-gram that counts as a match."""
    max_matching_ngram_size: int = field(default=3, metadata=between(1, 16))
    """Longest n-gram, which is tried first."""
    draft_length: Literal["adaptive", "fixed"] | None = field(default=None, metadata=_CONFIDENCE)
    """As for method `prompt_lookup`."""
    min_confidence: float | None = field(default=None, metadata=between(0, 1))
    """With `draft`: as for method `draft_model`."""
    max_concurrency: int | None = field(default=None, metadata=at_least(1))
    """Draft nothing while more sequences than this are running. Default: no limit."""
    heads: str | None = None
    """Folder or file of [Medusa heads](conversion.md#medusa-heads)."""
    tree: TreeOption = "auto"
    """With `heads`: as for method `medusa`; `dynamic` also merges in the matches of prompt lookup.
    Refused with `redrafter` and `eagle3`."""
    redrafter: ReDrafterOptions | None = None
    eagle3: Eagle3Options | None = None
    draft_vocab_size: int | None = field(
        default=None, metadata=at_least(16) | formerly("guess_vocabulary")
    )
    """With `heads` or `redrafter`: as for method `medusa`."""

    @property
    def grows_trees(self) -> bool:
        """Whether the matches and the second source are merged into one tree."""
        with_heads = self.heads is not None and self.tree == "dynamic"
        return with_heads or self.redrafter is not None or self.eagle3 is not None


@dataclass(frozen=True)
class Lookahead:
    """N-grams that the target finds by Jacobi iteration (lookahead decoding)."""

    method: Literal["lookahead"]
    window_size: int = field(default=4, metadata=at_least(1))
    """W of the paper: positions of the lookahead window."""
    ngram_size: int = field(default=3, metadata=at_least(1))
    """N of the paper: length of the n-grams."""
    verification_set_size: int = field(default=4, metadata=at_least(0))
    """G of the paper: n-grams that one step verifies."""
    draft_length: Literal["adaptive", "fixed"] | None = None
    """As for method `prompt_lookup`."""
    max_concurrency: int | None = field(default=None, metadata=at_least(1))
    """Draft nothing while more sequences than this are running. Default: no limit."""

    @property
    def num_draft_tokens(self) -> int:
        """Count the tokens of one step after the root: the window, then the n-grams to verify.

        Equals the `--max_draft_len` that TensorRT-LLM demands for the same sizes
        (`LookaheadDecodingConfig`, cpp/tensorrt_llm/executor/decodingConfig.cpp).
        """
        length = self.ngram_size - 1
        return max(length - 1, 0) + (self.window_size - 1 + self.verification_set_size) * length


@dataclass(frozen=True)
class Medusa:
    """Drafts of heads on the target's last hidden state, verified as a tree."""

    method: Literal["medusa"]
    heads: str
    """Folder or file of [Medusa heads](conversion.md#medusa-heads) in the layout of
    FasterDecoding, Medusa-2 or ModelOpt."""
    num_draft_tokens: int = field(default=16, metadata=between(1, 255))
    """Most draft tokens per step: nodes of the tree."""
    tree: TreeOption = "auto"
    """`auto`: grown from the heads' `calibration.json`. `dynamic`: grown in every step from the
    heads' probabilities. A list of paths such as `[[0], [0, 0], [1]]`: missing prefixes are
    added."""
    acceptance: Literal["exact", "typical"] = "exact"
    """`typical` accepts tokens that are likely enough when tokens are sampled. It is lossy."""
    typical_epsilon: float = field(default=0.09, metadata=between(0, 1))
    """With `typical`: the paper's epsilon."""
    typical_delta: float = field(default=0.3, metadata=between(0, 1))
    """With `typical`: the paper's delta."""
    draft_vocab_size: int | None = field(
        default=None, metadata=at_least(16) | formerly("guess_vocabulary")
    )
    """`openvino`: draft only N tokens: the most frequent of the drafter's training, or the first
    of the vocabulary if it has no [token map](training.md). Default: all."""
    draft_length: Literal["adaptive", "fixed"] | None = None
    """As for method `prompt_lookup`."""
    max_concurrency: int | None = field(default=None, metadata=at_least(1))
    """Draft nothing while more sequences than this are running. Default: no limit."""


@dataclass(frozen=True)
class Eagle3:
    """Drafts of a one-layer decoder on hidden states of several layers (arXiv 2503.01840).

    `sa_config`, `use_rejection_sampling` and `draft_len_schedule` are for `llmapi`. They and
    `tree: dynamic` need a [release](gpu.md#releases-of-the-llm-api) that has them.
    """

    method: Literal["eagle3"]
    draft: Eagle3Draft
    """An EAGLE-3 checkpoint that was trained for this target."""
    num_draft_tokens: int = field(default=3, metadata=between(1, 64))
    """Most draft tokens per step: length of the chain, or nodes of the tree."""
    tree: Literal["chain", "dynamic"] = "chain"
    """`dynamic`: a tree that grows at every step from the drafter's probabilities, as in
    EAGLE-2."""
    num_beams: int = field(default=4, metadata=between(1, 32))
    """With `tree: dynamic`: paths per level that the drafter continues."""
    draft_len_per_beam: int = field(default=5, metadata=between(1, 32))
    """With `tree: dynamic`: levels of the tree."""
    draft_length: Literal["adaptive", "fixed"] | None = None
    """As for method `prompt_lookup`."""
    max_concurrency: int | None = field(default=None, metadata=at_least(1))
    """Draft nothing while more sequences than this are running. Default: no limit."""
    sa_config: SuffixOptions | None = None
    """Join a suffix automaton to the drafter. Default: none."""
    use_rejection_sampling: bool = False
    """Accept sampled draft tokens by rejection sampling instead of exact match."""
    draft_len_schedule: Mapping[str, int] | None = None
    """Draft tokens by batch size, e.g. `{1: 3, 8: 1}`: from 8 sequences on, 1. The first is
    `num_draft_tokens`. Default: always `num_draft_tokens`."""


@dataclass(frozen=True)
class ReDrafter:
    """Beams of a recurrent drafter on the target's last hidden state (arXiv 2403.09919)."""

    method: Literal["redrafter"]
    drafter: str = field(metadata=formerly("heads"))
    """Folder of the [ReDrafter](conversion.md#redrafter)."""
    num_beams: int = field(default=5, metadata=between(1, 32))
    """Beams per step."""
    draft_len_per_beam: int = field(default=5, metadata=between(1, 32))
    """Tokens per beam. A step verifies one token and at most `num_beams` times this number."""
    greedy_search: bool = True
    """`true`: accept a draft token if it is the target's most likely token. `false` (`tensorrt`):
    sample with the request's temperature; other sampling options are ignored."""
    draft_length: Literal["adaptive", "fixed"] | None = None
    """As for method `prompt_lookup`. `fixed`: all beams have their full length, as in the engines
    of TensorRT-LLM."""
    draft_vocab_size: int | None = field(default=None, metadata=at_least(16))
    """As for method `medusa`."""

    @property
    def num_draft_tokens(self) -> int:
        """Count the tokens of one step after the root, if no two beams share a prefix.

        This is the `max_draft_len` that TensorRT-LLM's builder computes (`build`, builder.py).
        """
        return self.num_beams * self.draft_len_per_beam

    @property
    def max_concurrency(self) -> None:
        """The engines of TensorRT-LLM speculate at every load."""
        return None


AnyLength = PromptLookup | DraftModel | Hybrid | Medusa | Eagle3  # a request may set fewer tokens
WithLength = AnyLength | Lookahead | ReDrafter  # the CPU engine may score fewer draft tokens
WithTree = Medusa | Hybrid | Eagle
WithUpstreamDraft = Eagle3 | Pard | DFlash  # TensorRT-LLM loads their draft as it is
InGraph = WithUpstreamDraft | MultiToken | SuffixAutomaton  # the target's graph drafts
Speculation = NoSpeculation | AnyLength | Lookahead | Eagle | ReDrafter | InGraph | Suffix

PLAIN = NoSpeculation()


def redrafter_of(options: Speculation) -> ReDrafterOptions | None:
    """Return how a ReDrafter in the target's checkpoint is used; None if there is none."""
    if isinstance(options, ReDrafter):
        return ReDrafterOptions(options.drafter, options.num_beams, options.draft_len_per_beam)
    return options.redrafter if isinstance(options, Hybrid) else None


def eagle3_of(options: Speculation) -> Eagle3Options | None:
    """Return how an EAGLE-3 drafter grows trees; None if there is none."""
    if isinstance(options, Eagle3):
        return Eagle3Options(options.draft.model, options.num_beams, options.draft_len_per_beam)
    return options.eagle3 if isinstance(options, Hybrid) else None


# methods whose engines discard rows of the KV cache
REWINDING = ("medusa", "lookahead", "eagle", "redrafter")
