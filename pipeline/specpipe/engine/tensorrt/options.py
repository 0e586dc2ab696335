"""Refusals of options that only specpipe's own loop has; TensorRT-LLM would ignore them.

Not here: what one engine cannot be built for; that is `check`.
"""

from collections.abc import Iterator

from specpipe.config.run_config import RunConfig
from specpipe.config.speculation import DraftModel, Medusa, PromptLookup, ReDrafter, WithLength
from specpipe.config.upstream_methods import Eagle
from specpipe.core.errors import Rejection


def check_run(config: RunConfig) -> Iterator[Rejection]:
    """Yield every option of `speculation` that TensorRT-LLM ignores, with engines or without."""
    options = config.speculation
    if isinstance(options, Eagle) and options.tree == "dynamic":
        yield Rejection(
            "Triton can give an EAGLE engine one fixed tree (eagle_choices), but not a tree that "
            "grows at every step, as in EAGLE-2",
            "set tree: auto, or list its paths; TensorRT-LLM's run.py runs the same engine with "
            "--eagle_use_dynamic_tree",
        )
    for key in _ignored(config):
        yield Rejection(
            f"backend {config.engine.backend} ignores speculation.{key}",
            "remove the key, or use backend: openvino",
        )


def _ignored(config: RunConfig) -> Iterator[str]:
    """Yield the given keys of `speculation` that TensorRT-LLM has no option for."""
    options, engines = config.speculation, config.engine.traits.upstream_engines
    if options.max_concurrency is not None and engines:
        yield "max_concurrency"
    if isinstance(options, WithLength) and options.draft_length not in (None, "fixed"):
        yield "draft_length"
    if isinstance(options, DraftModel) and options.min_confidence is not None:
        yield "min_confidence"
    if config.drafter("draft"):
        yield "draft.heads"
    if isinstance(options, Medusa | PromptLookup) and options.tree == "dynamic":
        yield "tree: dynamic"
    if isinstance(options, Medusa | ReDrafter) and options.draft_vocab_size is not None:
        yield "draft_vocab_size"
    if isinstance(options, Medusa) and options.acceptance == "typical":
        yield "acceptance: typical"
