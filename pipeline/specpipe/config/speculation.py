"""The speculation methods as records: `method:` and only the keys of that method.

The text under a field documents its key: `scripts/write-docs` makes docs/configuration.md from it.
To add a method, write its record here, add it to `Speculation`, and see `assembly.PROPOSERS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from specpipe.config.keys import at_least, between, formerly, matching, value_formerly
from specpipe.core.trees import TreePath, depth

TreeOption = Literal["auto", "dynamic"] | tuple[TreePath, ...]  # dynamic: grown at every step

REVISION = matching(
    r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}", "a branch, a tag or a commit of a Hugging Face id"
)

_CONFIDENCE = value_formerly("confidence", {"draft_length": "adaptive", "min_confidence": "0.4"})


@dataclass(frozen=True)
class DraftOptions:
    """The draft model. With Medusa heads of its own it needs fewer calls."""

    model: str
    """Folder, `.gguf` file or Hugging Face id of the draft. Its tokenizer must be the target's;
    the embedding may be [padded differently](conversion.md#drafts-against-targets)."""
    heads: str | None = None
    """Medusa heads of the draft model. The draft then drafts several tokens per call, with the
    same distribution."""
    num_draft_tokens: int = field(default=4, metadata=between(1, 64))
    """As `speculation.num_draft_tokens`, for a step of the draft model: most nodes of the tree that
    its heads draft."""
    revision: str | None = field(default=None, metadata=REVISION)
    """Branch, tag or commit of a Hugging Face id. Not for `backend: llmapi`. Default: `main`."""


@dataclass(frozen=True)
class Eagle3Draft:
    """The checkpoint of a drafter that TensorRT-LLM loads as it is."""

    model: str
    """Folder; for `eagle3`, an [EAGLE-3 drafter](conversion.md#eagle-3-drafters) that was trained
    for this target. With `backend: llmapi` also a Hugging Face id."""
    revision: str | None = field(default=None, metadata=REVISION)
    """Branch, tag or commit. Refused: TensorRT-LLM loads the main branch. Download the revision
    and set `model` to its folder."""


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
class ReDrafterOptions:
    """A ReDrafter that is merged with prompt lookup; the names are those of `ReDrafter`."""

    drafter: str = field(metadata=formerly("heads"))
    """Folder of the [ReDrafter](conversion.md#redrafter)."""
    num_beams: int = field(default=3, metadata=between(1, 32))
    """Paths per level that the ReDrafter continues."""
    draft_len_per_beam: int = field(default=4, metadata=between(1, 32))
    """Levels of the tree that the ReDrafter fills."""


@dataclass(frozen=True)
class Eagle3Options:
    """An EAGLE-3 drafter that is merged with prompt lookup; the names are those of `Eagle3`."""

    model: str
    """Folder of the [EAGLE-3 drafter](conversion.md#eagle-3-drafters)."""
    num_beams: int = field(default=4, metadata=between(1, 32))
    """Paths per level that the drafter continues."""
    draft_len_per_beam: int = field(default=5, metadata=between(1, 32))
    """Levels of the tree that the drafter fills."""


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
    """With `heads`: as for method `medusa`."""

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
    """`openvino`: heads draft only the first N tokens of the vocabulary, which are the frequent
    ones of a BPE vocabulary. Default: all."""
    draft_length: Literal["adaptive", "fixed"] | None = None
    """As for method `prompt_lookup`."""
    max_concurrency: int | None = field(default=None, metadata=at_least(1))
    """Draft nothing while more sequences than this are running. Default: no limit."""


@dataclass(frozen=True)
class Eagle:
    """Drafts of a one-layer decoder on the target's hidden states (EAGLE-1); `tensorrt` only.

    `num_eagle_layers` and `num_draft_tokens` are those of the tree if one is listed, and bound the
    tree that `tree: auto` grows.
    """

    method: Literal["eagle"]
    drafter: str = field(metadata=formerly("heads"))
    """Folder of the [EAGLE drafter](conversion.md#eagle-drafters)."""
    num_draft_tokens: int = field(default=63, metadata=between(1, 256))
    """Most draft tokens per step: nodes of the tree."""
    tree: TreeOption = "auto"
    """`auto`: grown for assumed acceptance rates. Or a list of paths. `dynamic` is refused."""
    num_eagle_layers: int = field(default=4, metadata=between(1, 16))
    """Levels of the tree. The engine has a copy of the drafter for each. Default for a listed
    tree: its depth."""
    max_non_leaves_per_layer: int = field(default=10, metadata=between(1, 256))
    """Nodes with children on one level that the engine has room for."""

    @property
    def max_concurrency(self) -> None:
        """The engines of TensorRT-LLM speculate at every load."""
        return None

    def with_tree(self, tree: tuple[TreePath, ...]) -> "Eagle":
        """Return the options for a tree, whose size they take."""
        return replace(self, tree=tree, num_draft_tokens=len(tree), num_eagle_layers=depth(tree))


@dataclass(frozen=True)
class SuffixOptions:
    """A suffix automaton that overrides drafts where it finds a long match."""

    threshold: int = field(default=4, metadata=at_least(1))
    """Shortest match, in tokens, that overrides the drafter's tokens."""
    enable_global_pool: bool = False
    """Search the texts of all running requests, not only the request's own."""


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
class MultiToken:
    """Drafts of the target's own layers for multi-token prediction; `llmapi` only."""

    method: Literal["mtp"]
    num_nextn_predict_layers: int = field(default=1, metadata=between(1, 8))
    """Tokens that the target's layers draft."""
    max_concurrency: int | None = field(default=None, metadata=at_least(1))
    """Draft nothing while more sequences than this are running. Default: no limit."""
    sa_config: SuffixOptions | None = None
    """As for method `eagle3`."""
    use_rejection_sampling: bool = False
    """As for method `eagle3`."""
    draft_len_schedule: Mapping[str, int] | None = None
    """As for method `eagle3`."""

    @property
    def num_draft_tokens(self) -> int:
        """Each layer drafts one token."""
        return self.num_nextn_predict_layers


@dataclass(frozen=True)
class Pard:
    """Drafts of a small model that predicts several tokens in one call (PARD); `llmapi` only."""

    method: Literal["pard"]
    draft: Eagle3Draft
    """A PARD checkpoint with the target's tokenizer."""
    num_draft_tokens: int = field(default=4, metadata=between(1, 64))
    """Most draft tokens per step: length of the chain."""
    max_concurrency: int | None = field(default=None, metadata=at_least(1))
    """Draft nothing while more sequences than this are running. Default: no limit."""
    sa_config: SuffixOptions | None = None
    """As for method `eagle3`."""
    use_rejection_sampling: bool = False
    """As for method `eagle3`."""
    draft_len_schedule: Mapping[str, int] | None = None
    """As for method `eagle3`."""


@dataclass(frozen=True)
class DFlash:
    """Drafts of a model that attends to the target's hidden states (DFlash); `llmapi` only."""

    method: Literal["dflash"]
    draft: Eagle3Draft
    """A DFlash checkpoint that was trained for this target."""
    num_draft_tokens: int = field(default=8, metadata=between(1, 64))
    """Most draft tokens per step: length of the chain."""
    max_concurrency: int | None = field(default=None, metadata=at_least(1))
    """Draft nothing while more sequences than this are running. Default: no limit."""
    use_rejection_sampling: bool = False
    """As for method `eagle3`."""
    draft_len_schedule: Mapping[str, int] | None = None
    """As for method `eagle3`."""


@dataclass(frozen=True)
class SuffixAutomaton:
    """Draft tokens that followed the longest earlier match of the last tokens; `llmapi` only."""

    method: Literal["suffix_automaton"]
    num_draft_tokens: int = field(default=4, metadata=between(1, 64))
    """Most draft tokens per step: length of the chain."""
    max_matching_ngram_size: int | None = field(default=None, metadata=between(1, 64))
    """Length of the match. Default: the longest one."""
    enable_global_pool: bool = False
    """Search the texts of all running requests, not only the request's own."""
    max_concurrency: int | None = field(default=None, metadata=at_least(1))
    """Draft nothing while more sequences than this are running. Default: no limit."""
    draft_len_schedule: Mapping[str, int] | None = None
    """As for method `eagle3`."""


@dataclass(frozen=True)
class Suffix:
    """Draft tokens that followed the last ones in earlier prompts and outputs; `vllm` only.

    This is SuffixDecoding (arXiv 2411.04975), whose drafts grow with the length of the match.
    """

    method: Literal["suffix"]
    num_draft_tokens: int = field(default=16, metadata=between(1, 64))
    """Most draft tokens per step: length of the chain."""
    max_tree_depth: int = field(default=24, metadata=between(1, 256))
    """Longest match with draft, in tokens."""
    max_cached_requests: int = field(default=10000, metadata=at_least(0))
    """Requests whose outputs are searched too. 0: only the request's own prompt and output."""
    max_spec_factor: float = field(default=1.0, metadata=between(0, 64))
    """Draft tokens for every token of the match."""
    min_token_prob: float = field(default=0.1, metadata=between(0, 1))
    """Least frequency of a token after the match."""
    max_concurrency: int | None = field(default=None, metadata=at_least(1))
    """Draft nothing while more sequences than this are running. Default: no limit."""


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
    """As for method `prompt_lookup`."""

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
UPSTREAM_ONLY = (
    "eagle",
    "mtp",
    "pard",
    "dflash",
    "suffix_automaton",
    "suffix",
)  # methods without a proposer of specpipe
