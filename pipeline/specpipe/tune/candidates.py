"""The settings of each method that `tune` tries."""

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any, Literal

from specpipe.config.method_parts import Eagle3Draft
from specpipe.config.speculation import (
    DraftModel,
    Eagle3,
    Hybrid,
    Lookahead,
    Medusa,
    PromptLookup,
    ReDrafter,
    Speculation,
    eagle3_of,
    redrafter_of,
)
from specpipe.core.trees import grow_tree

LOOKUP_TOKENS = (2, 3, 4, 6, 8, 10, 12, 16)
LOOKUP_NGRAMS = ((1, 2), (1, 3), (2, 3), (2, 4))
TREE_NGRAMS = ((1, 6), (2, 6))
BEAMS = ((1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (2, 4), (3, 3), (3, 4), (4, 4), (5, 5))
DRAFTER_BEAMS = ((2, 2), (2, 3), (3, 3), (4, 3), (3, 4), (4, 4))  # paths a level, levels
DRAFT_TOKENS = (1, 2, 3, 4, 5, 6, 8, 10)
EAGLE3_TOKENS = (1, 2, 3, 4, 5, 6)  # at most `tune.growth.LEVELS`
HYBRID_TOKENS = (2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32)
# What `tune` chooses, and writes out even where it is the default.
TUNED = (
    "num_draft_tokens", "min_matching_ngram_size", "max_matching_ngram_size", "tree", "window_size",
    "ngram_size", "verification_set_size", "num_beams", "draft_len_per_beam",
)  # fmt: skip
KEPT = ("draft_vocab_size", "min_confidence", "draft_length", "max_concurrency")
TREE_NODES = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
WINDOWS = ((2, 2, 2), (4, 3, 4), (5, 4, 5))


def is_tuned(options: object, name: str) -> bool:
    """Tell whether a setting is chosen by `tune` and has an effect: a drafter's tree has none."""
    grows = isinstance(options, Hybrid) and bool(options.redrafter or options.eagle3)
    moot = name == "tree" and grows
    if isinstance(options, Eagle3) and options.tree == "chain":
        moot = name in ("num_beams", "draft_len_per_beam")
    return name in TUNED and not moot


def possible_methods(options: Speculation) -> list[Speculation]:
    """Return the methods that need nothing, or the draft or the heads that `options` brings.

    They have the options of `options` that do not belong to one method (KEPT).
    """
    found: list[Speculation] = [PromptLookup("prompt_lookup"), Lookahead("lookahead")]
    draft = options.draft if isinstance(options, DraftModel | Hybrid) else None
    heads = options.heads if isinstance(options, Medusa | Hybrid) else None
    if draft is not None:
        found += [DraftModel("draft_model", draft), Hybrid("hybrid", draft)]
    if (recurrent := redrafter_of(options)) is not None:
        beams = ReDrafter("redrafter", **asdict(recurrent))
        found += [beams, Hybrid("hybrid", redrafter=recurrent)]
    if (layer := eagle3_of(options)) is not None:
        alone = (
            options if isinstance(options, Eagle3) else Eagle3("eagle3", Eagle3Draft(layer.model))
        )
        found += [alone, Hybrid("hybrid", eagle3=layer)]
    if heads is not None:
        found += [Medusa("medusa", heads), Hybrid("hybrid", heads=heads)]
    return [_with_kept(method, options) for method in found]


def _with_kept(method: Speculation, options: Speculation) -> Speculation:
    both = {f.name for f in fields(method)} & {f.name for f in fields(options)} & set(KEPT)
    return replace(method, **{name: getattr(options, name) for name in both})


def candidates(options: Speculation, accuracy: Sequence[Sequence[float]]) -> list[Speculation]:
    """Return the settings to try for the method of `options`, in no order.

    `accuracy` is that of the heads, [heads, ranks]: each size of tree is grown for it.
    """
    if isinstance(options, PromptLookup):
        shapes: dict[Literal["chain", "dynamic"], tuple[tuple[int, int], ...]]
        shapes = {"chain": LOOKUP_NGRAMS, "dynamic": TREE_NGRAMS}
        return [
            replace(options, num_draft_tokens=tokens, tree=shape, min_matching_ngram_size=low,
                    max_matching_ngram_size=high)
            for tokens in LOOKUP_TOKENS
            for shape, ngrams in shapes.items()
            for low, high in ngrams
        ]  # fmt: skip
    if isinstance(options, DraftModel):
        return [replace(options, num_draft_tokens=tokens) for tokens in DRAFT_TOKENS]
    if isinstance(options, Medusa):
        return _trees(options, accuracy)
    if isinstance(options, ReDrafter):
        return [
            replace(options, num_beams=beams, draft_len_per_beam=length) for beams, length in BEAMS
        ]
    if isinstance(options, Eagle3):
        return _layers(options)
    if isinstance(options, Hybrid):
        return _hybrids(options)
    if isinstance(options, Lookahead):
        return [
            replace(options, window_size=w, ngram_size=n, verification_set_size=g)
            for w, n, g in WINDOWS
        ]
    return []


def _hybrids(options: Hybrid) -> list[Speculation]:
    drafter = options.eagle3 or options.redrafter
    if drafter is not None:
        name = "eagle3" if options.eagle3 else "redrafter"
        low, high = TREE_NGRAMS[0]
        beams: list[dict[str, Any]] = [
            {name: replace(drafter, num_beams=b, draft_len_per_beam=n)} for b, n in DRAFTER_BEAMS
        ]
        return [
            replace(options, num_draft_tokens=nodes, min_matching_ngram_size=low,
                    max_matching_ngram_size=high, **changed)
            for nodes in HYBRID_TOKENS
            for changed in beams
        ]  # fmt: skip
    tree = "dynamic" if options.heads else options.tree
    return [
        replace(options, num_draft_tokens=tokens, tree=tree, min_matching_ngram_size=low,
                max_matching_ngram_size=high)
        for tokens in HYBRID_TOKENS
        for low, high in (TREE_NGRAMS if options.heads else LOOKUP_NGRAMS)
    ]  # fmt: skip


def _layers(options: Eagle3) -> list[Speculation]:
    chains = [replace(options, num_draft_tokens=n, tree="chain") for n in EAGLE3_TOKENS]
    trees = [
        replace(options, num_draft_tokens=nodes, tree="dynamic", num_beams=b,
                draft_len_per_beam=length)
        for nodes in HYBRID_TOKENS
        for b, length in DRAFTER_BEAMS
    ]  # fmt: skip
    return [*chains, *trees]


def _trees(options: Medusa, accuracy: Sequence[Sequence[float]]) -> list[Speculation]:
    found: list[Speculation] = []
    for nodes in TREE_NODES:
        tree = grow_tree(accuracy, nodes)
        if len(tree) == nodes:
            found.append(replace(options, num_draft_tokens=nodes, tree=tree))
            found.append(replace(options, num_draft_tokens=nodes, tree="dynamic"))
    return found
