"""The speculation methods as records: `method:` and its own keys, and nothing of another's.

To add a method, write its record here, add it to `Speculation`, and see `assembly.PROPOSERS`.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from specpipe.records import at_least, between, matching
from specpipe.trees import TreePath, depth

TreeOption = Literal["auto", "dynamic"] | tuple[TreePath, ...]  # dynamic: grown at every step

REVISION = matching(
    r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}", "a branch, a tag or a commit of a Hugging Face id"
)


@dataclass(frozen=True)
class DraftOptions:
    """The small model that guesses; with Medusa heads of its own it needs fewer calls to do so."""

    model: str
    heads: str | None = None
    num_draft_tokens: int = field(default=4, metadata=between(1, 64))  # its heads' guesses a call
    revision: str | None = field(default=None, metadata=REVISION)  # of a Hugging Face id


@dataclass(frozen=True)
class NoSpeculation:
    """Plain decoding, one token a step."""

    method: Literal["none"] = "none"

    @property
    def num_draft_tokens(self) -> int:
        """No tokens are guessed."""
        return 0

    @property
    def max_concurrency(self) -> None:
        """There is no speculation to be held back."""
        return None


@dataclass(frozen=True)
class PromptLookup:
    """Guesses copied from where the last tokens occurred before, in prompt or output.

    `tree: chain` copies what followed the best match, as TensorRT-LLM's NGram does; `dynamic` lays
    out what followed all matches as a tree, the likeliest first.
    """

    method: Literal["prompt_lookup"]
    num_draft_tokens: int = field(default=4, metadata=between(1, 64))
    min_matching_ngram_size: int = field(default=2, metadata=between(1, 16))
    max_matching_ngram_size: int = field(default=3, metadata=between(1, 16))
    tree: Literal["chain", "dynamic"] = "chain"
    draft_length: Literal["fixed", "adaptive"] = "fixed"  # see DraftModel
    max_concurrency: int | None = field(default=None, metadata=at_least(1))


@dataclass(frozen=True)
class DraftModel:
    """Guesses of a smaller model with the same tokenizer.

    `draft_length`: always `num_draft_tokens`; or shorter after drafts that were refused; or only
    while the draft's most likely token has a probability of at least `min_confidence`. Above
    `max_concurrency` running sequences nothing is guessed.
    """

    method: Literal["draft_model"]
    draft: DraftOptions
    num_draft_tokens: int = field(default=4, metadata=between(1, 64))
    draft_length: Literal["fixed", "adaptive", "confidence"] = "fixed"
    min_confidence: float = field(default=0.4, metadata=between(0, 1))
    max_concurrency: int | None = field(default=None, metadata=at_least(1))


@dataclass(frozen=True)
class DrafterOptions:
    """A ReDrafter that guesses beside copies; the names are those of `ReDrafter`."""

    heads: str  # folder of the drafter; see `checkpoint.redrafter`
    num_beams: int = field(default=3, metadata=between(1, 32))  # paths it continues on a level
    draft_len_per_beam: int = field(default=4, metadata=between(1, 32))  # levels


@dataclass(frozen=True)
class Hybrid:
    """Prompt lookup first; where that finds nothing, a draft model or Medusa heads guess.

    With heads and `tree: dynamic`, and with a ReDrafter, there is no first and second: both have
    their say in one tree. The keys are those of the two methods; `draft_length` governs a draft
    model. `num_draft_tokens` bounds both: what is looked up, and what the second guesses.
    """

    method: Literal["hybrid"]
    draft: DraftOptions | None = None
    num_draft_tokens: int = field(default=4, metadata=between(1, 64))
    min_matching_ngram_size: int = field(default=2, metadata=between(1, 16))
    max_matching_ngram_size: int = field(default=3, metadata=between(1, 16))
    draft_length: Literal["fixed", "adaptive", "confidence"] = "fixed"
    min_confidence: float = field(default=0.4, metadata=between(0, 1))
    max_concurrency: int | None = field(default=None, metadata=at_least(1))
    heads: str | None = None
    tree: TreeOption = "auto"
    redrafter: DrafterOptions | None = None
    guess_vocabulary: int | None = field(default=None, metadata=at_least(16))  # see Medusa

    @property
    def grows_trees(self) -> bool:
        """Whether copies and the second source have their say in one tree."""
        return self.redrafter is not None or (self.heads is not None and self.tree == "dynamic")


@dataclass(frozen=True)
class Lookahead:
    """N-grams that the target finds by Jacobi iteration; the paper's W, N and G, in this order."""

    method: Literal["lookahead"]
    window_size: int = field(default=4, metadata=at_least(1))
    ngram_size: int = field(default=3, metadata=at_least(1))
    verification_set_size: int = field(default=4, metadata=at_least(0))
    max_concurrency: int | None = field(default=None, metadata=at_least(1))

    @property
    def num_draft_tokens(self) -> int:
        """Count what one step scores beside the root: the window, then the n-grams to verify.

        Equals the `--max_draft_len` that TensorRT-LLM demands for the same sizes
        (`LookaheadDecodingConfig`, cpp/tensorrt_llm/executor/decodingConfig.cpp).
        """
        length = self.ngram_size - 1
        return max(length - 1, 0) + (self.window_size - 1 + self.verification_set_size) * length


@dataclass(frozen=True)
class Medusa:
    """Guesses of heads on the target's last hidden state, checked as a tree.

    `guess_vocabulary`: heads guess only the first so many tokens of the vocabulary, which are the
    frequent ones of a BPE vocabulary; that costs few guesses and saves most of the heads' time.
    """

    method: Literal["medusa"]
    heads: str  # folder or file; see `checkpoint.medusa` for the layouts
    num_draft_tokens: int = field(default=16, metadata=between(1, 255))  # nodes of the tree
    tree: TreeOption = "auto"
    acceptance: Literal["exact", "typical"] = "exact"  # typical is lossy where it samples
    typical_epsilon: float = field(default=0.09, metadata=between(0, 1))
    typical_delta: float = field(default=0.3, metadata=between(0, 1))
    guess_vocabulary: int | None = field(default=None, metadata=at_least(16))  # None: all
    max_concurrency: int | None = field(default=None, metadata=at_least(1))


@dataclass(frozen=True)
class Eagle:
    """Guesses of a one-layer decoder on the target's hidden states (EAGLE-1), level by level of a
    fixed tree; for TensorRT-LLM's engines only, whose names and limits the keys have.

    `num_eagle_layers` and `num_draft_tokens` are those of the tree if one is listed, and bound the
    one that `tree: auto` grows.
    """

    method: Literal["eagle"]
    heads: str  # folder of the drafter; see `checkpoint.eagle`
    num_draft_tokens: int = field(default=63, metadata=between(1, 256))  # nodes of the tree
    tree: TreeOption = "auto"
    num_eagle_layers: int = field(default=4, metadata=between(1, 16))  # levels of the tree
    max_non_leaves_per_layer: int = field(default=10, metadata=between(1, 256))  # with children

    @property
    def max_concurrency(self) -> None:
        """Upstream always speculates."""
        return None

    def with_tree(self, tree: tuple[TreePath, ...]) -> "Eagle":
        """Return the options for a tree, whose size they take."""
        return replace(self, tree=tree, num_draft_tokens=len(tree), num_eagle_layers=depth(tree))


@dataclass(frozen=True)
class Eagle3:
    """Guesses of a one-layer model that reads the target's hidden states; for `llmapi` only."""

    method: Literal["eagle3"]
    draft: DraftOptions  # an EAGLE-3 checkpoint that was trained for this target
    num_draft_tokens: int = field(default=3, metadata=between(1, 64))
    max_concurrency: int | None = field(default=None, metadata=at_least(1))


@dataclass(frozen=True)
class MultiToken:
    """Guesses of layers that come with the target (multi-token prediction); for `llmapi` only."""

    method: Literal["mtp"]
    num_nextn_predict_layers: int = field(default=1, metadata=between(1, 8))

    @property
    def num_draft_tokens(self) -> int:
        """Each layer guesses one token."""
        return self.num_nextn_predict_layers

    @property
    def max_concurrency(self) -> None:
        """Upstream always speculates."""
        return None


@dataclass(frozen=True)
class ReDrafter:
    """Beams of a small recurrent net beside the target (2403.09919).

    `greedy_search: false` is for `tensorrt` only.
    """

    method: Literal["redrafter"]
    heads: str  # folder of the drafter; see `checkpoint.redrafter` for the spellings
    num_beams: int = field(default=5, metadata=between(1, 32))
    draft_len_per_beam: int = field(default=5, metadata=between(1, 32))
    greedy_search: bool = True  # false: tokens are sampled by the temperature of a request

    @property
    def num_draft_tokens(self) -> int:
        """Count what one step scores beside the root, if no two beams begin alike.

        This is the `max_draft_len` that upstream's builder computes (`build`, builder.py).
        """
        return self.num_beams * self.draft_len_per_beam

    @property
    def max_concurrency(self) -> None:
        """Upstream always speculates."""
        return None


AnyLength = PromptLookup | DraftModel | Hybrid | Medusa  # a request may ask for fewer tokens
WithTree = Medusa | Hybrid | Eagle
WithHeads = WithTree | ReDrafter  # `heads` guess, and go into the target's checkpoint
Speculation = NoSpeculation | AnyLength | Lookahead | Eagle | ReDrafter | Eagle3 | MultiToken

PLAIN = NoSpeculation()


def drafter_of(options: Speculation) -> DrafterOptions | None:
    """Return how a ReDrafter in the target's checkpoint is used; None if there is none."""
    if isinstance(options, ReDrafter):
        return DrafterOptions(options.heads, options.num_beams, options.draft_len_per_beam)
    return options.redrafter if isinstance(options, Hybrid) else None


# methods whose engines take rows of the KV cache back
REWINDING = ("medusa", "lookahead", "eagle", "redrafter")
UPSTREAM_ONLY = ("eagle", "eagle3", "mtp")  # methods without a proposer of ours
