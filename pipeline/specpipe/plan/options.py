"""Options of a method that only our own loop follows, and methods that only upstream's has."""

from collections.abc import Iterator

from specpipe.building import Rejection
from specpipe.config import RunConfig
from specpipe.methods import (
    DraftModel,
    Eagle,
    Eagle3,
    Hybrid,
    Medusa,
    MultiToken,
    PromptLookup,
    ReDrafter,
)

# What a target without layers of its own for that may use instead.
_WITHOUT_LAYERS = {
    "openvino": "draft_model or prompt_lookup",
    "tensorrt": "draft_model or lookahead",
    "llmapi": "eagle3, draft_model or prompt_lookup",
}


def check_options(config: RunConfig, next_token_layers: int = 0) -> Iterator[Rejection]:
    """Refuse what the backend would ignore, and what it cannot do at all.

    `next_token_layers` is what the target has for multi-token prediction.
    """
    backend, options = config.engine.backend, config.speculation
    if isinstance(options, MultiToken) and not next_token_layers:
        yield Rejection(
            f"{config.target.model} has no layers for multi-token prediction "
            "(num_nextn_predict_layers in config.json)",
            f"use method: {_WITHOUT_LAYERS[backend]}",
        )
    if backend == "openvino":
        if isinstance(options, ReDrafter) and not options.greedy_search:
            yield Rejection(
                "backend openvino searches a ReDrafter's beams for the likeliest tokens, it does "
                "not draw them",
                "remove speculation.greedy_search, or use backend: tensorrt",
            )
        if isinstance(options, Eagle):
            yield Rejection(
                f"method {options.method} runs in TensorRT-LLM's engines only",
                "use backend: tensorrt, or one of medusa, draft_model, prompt_lookup",
            )
        if isinstance(options, Eagle3 | MultiToken):
            yield Rejection(
                f"method {options.method} runs in TensorRT-LLM's LLM API only",
                "use backend: llmapi, or one of medusa, draft_model, prompt_lookup",
            )
        return
    if isinstance(options, Eagle) and options.tree == "dynamic":
        yield Rejection(
            "Triton can give an EAGLE engine one tree for every step (eagle_choices), but not have "
            "it grow one at every step, as EAGLE-2 does",
            "set tree: auto, or list its paths; TensorRT-LLM's run.py runs the same engine with "
            "--eagle_use_dynamic_tree",
        )
    for key in _ignored(config):
        yield Rejection(
            f"backend {backend} drafts by its own rules and ignores speculation.{key}",
            "remove the key, or use backend: openvino",
        )


def _ignored(config: RunConfig) -> Iterator[str]:
    """Yield the given keys of `speculation` that have no counterpart upstream."""
    options, engines = config.speculation, config.engine.backend == "tensorrt"
    if options.max_concurrency is not None and engines:
        yield "max_concurrency"
    if isinstance(options, PromptLookup | DraftModel | Hybrid) and options.draft_length != "fixed":
        yield "draft_length"
    if config.heads("draft"):
        yield "draft.heads"
    if isinstance(options, Medusa | PromptLookup) and options.tree == "dynamic":
        yield "tree: dynamic"
    if isinstance(options, Medusa) and options.guess_vocabulary is not None:
        yield "guess_vocabulary"
    if isinstance(options, Medusa) and options.acceptance == "typical":
        yield "acceptance: typical"
