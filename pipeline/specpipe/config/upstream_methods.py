"""The methods that only TensorRT-LLM or vLLM run, as records; specpipe has no proposer for them.

The text under a field documents its key, as in `speculation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from specpipe.config.keys import at_least, between, formerly
from specpipe.config.method_parts import Eagle3Draft, SuffixOptions, TreeOption
from specpipe.core.trees import TreePath, depth


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


UPSTREAM_ONLY = (
    "eagle",
    "mtp",
    "pard",
    "dflash",
    "suffix_automaton",
    "suffix",
)  # methods without a proposer of specpipe
