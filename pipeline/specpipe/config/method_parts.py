"""The models, drafters and trees that methods of speculation name: parts of their records.

The text under a field documents its key, as in `speculation`.
"""

from dataclasses import dataclass, field
from typing import Literal

from specpipe.config.keys import at_least, between, formerly, matching
from specpipe.core.trees import TreePath

TreeOption = Literal["auto", "dynamic"] | tuple[TreePath, ...]  # dynamic: grown at every step


REVISION = matching(
    r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}", "a branch, a tag or a commit of a Hugging Face id"
)


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
class SuffixOptions:
    """A suffix automaton that overrides drafts where it finds a long match."""

    threshold: int = field(default=4, metadata=at_least(1))
    """Shortest match, in tokens, that overrides the drafter's tokens."""
    enable_global_pool: bool = False
    """Search the texts of all running requests, not only the request's own."""
