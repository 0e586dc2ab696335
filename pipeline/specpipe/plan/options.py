"""Refuse options that only specpipe's loop supports, and methods that a backend lacks."""

from collections.abc import Iterator

from specpipe.config.run_config import RunConfig
from specpipe.config.speculation import (
    DraftModel,
    Eagle,
    Eagle3,
    InGraph,
    Medusa,
    MultiToken,
    PromptLookup,
    ReDrafter,
    Suffix,
    WithLength,
)
from specpipe.core.errors import Rejection
from specpipe.core.paths import is_plain

# Methods for a target without layers for multi-token prediction.
_WITHOUT_LAYERS = {
    "openvino": "draft_model or prompt_lookup",
    "tensorrt": "draft_model or lookahead",
    "llmapi": "eagle3, draft_model or prompt_lookup",
    "vllm": "eagle3, draft_model or prompt_lookup",
}


def check_options(config: RunConfig, next_token_layers: int = 0) -> Iterator[Rejection]:
    """Refuse options that the backend ignores and methods that it does not support.

    `next_token_layers` is the number of the target's layers for multi-token prediction.
    """
    place = config.serving.repository_path
    if place is not None and not is_plain(place):
        yield Rejection(
            f"serving.repository_path is {place!r}: Triton starts its models through a shell, "
            "without quotes, and they read paths as ASCII",
            "use letters, digits and ._/-",
        )
    backend, options = config.engine.backend, config.speculation
    yield from _check_front(config)
    if backend == "llmapi" and (config.serving.instances or 1) > 1:
        yield Rejection(
            f"serving.instances is {config.serving.instances}: backend llmapi serves one instance; "
            "each would load the model again, and NVIDIA's model wants GPUs for each "
            "(gpu_device_ids)",
            "remove serving.instances, and raise engine.max_batch_size",
        )
    if isinstance(options, MultiToken) and not next_token_layers:
        yield Rejection(
            f"{config.target.model} has no layers for multi-token prediction "
            "(num_nextn_predict_layers in config.json)",
            f"use method: {_WITHOUT_LAYERS[backend]}",
        )
    if backend == "vllm":
        return  # the backend itself checks its options
    if backend == "openvino":
        if isinstance(options, ReDrafter) and not options.greedy_search:
            yield Rejection(
                "backend openvino drafts the most likely tokens with a ReDrafter; it does not "
                "sample draft tokens",
                "remove speculation.greedy_search, or use backend: tensorrt",
            )
        if isinstance(options, Eagle3) and options.draft.revision is not None:
            yield Rejection(
                f"speculation.draft.revision is {options.draft.revision}, but a folder has none",
                "remove the key; speculation.draft.model names the folder of the drafter",
            )
        if isinstance(options, Eagle3):
            for key in ("sa_config", "use_rejection_sampling", "draft_len_schedule"):
                if f"speculation.{key}" in config.places:
                    yield Rejection(
                        f"backend openvino does not support speculation.{key}",
                        "remove the key, or use backend: llmapi",
                    )
        if isinstance(options, Eagle):
            yield Rejection(
                f"method {options.method} runs only in TensorRT-LLM engines",
                "use backend: tensorrt, or one of medusa, draft_model, prompt_lookup",
            )
        if isinstance(options, InGraph) and not isinstance(options, Eagle3):
            yield Rejection(
                f"method {options.method} runs only in TensorRT-LLM's LLM API",
                "use backend: llmapi, or one of medusa, draft_model, prompt_lookup",
            )
        if isinstance(options, Suffix):
            yield Rejection(
                "method suffix runs only in vLLM",
                "use backend: vllm, or method: prompt_lookup",
            )
        return
    if isinstance(options, Eagle) and options.tree == "dynamic":
        yield Rejection(
            "Triton can give an EAGLE engine one fixed tree (eagle_choices), but not a tree that "
            "grows at every step, as in EAGLE-2",
            "set tree: auto, or list its paths; TensorRT-LLM's run.py runs the same engine with "
            "--eagle_use_dynamic_tree",
        )
    for key in _ignored(config):
        yield Rejection(
            f"backend {backend} ignores speculation.{key}",
            "remove the key, or use backend: openvino",
        )


_TRITONS = (
    "decoupled", "max_queue_size", "loop", "instances", "repository_path", "spawn_processes", "tls",
    "openai",
)  # fmt: skip


_FRONTS_OF = {"llmapi": ("triton", "trtllm_serve", "dynamo"), "vllm": ("vllm_serve", "triton")}


def _check_front(config: RunConfig) -> Iterator[Rejection]:
    """Refuse another front than Triton for models that only Triton serves, and Triton's keys."""
    front, backend = config.serving.front, config.engine.backend
    known = _FRONTS_OF.get(backend, ("triton",))
    if front not in known and (backend == "vllm" or front == "vllm_serve"):
        yield Rejection(
            f"serving.front is {front}, which does not serve backend {backend}",
            "remove serving.front",
        )
        return
    if front == "triton":
        return
    if backend not in _FRONTS_OF:
        yield Rejection(
            f"serving.front is {front}, which serves models without engines; backend {backend} is "
            "served by Triton",
            "remove serving.front, or use backend: llmapi",
        )
        return
    for key in _TRITONS:
        if f"serving.{key}" in config.places:
            yield Rejection(
                f"serving.{key} is a key of Triton, and serving.front is {front}",
                "encrypt with a proxy before the server"
                if key == "tls"
                else f"remove serving.{key}",
            )


def _ignored(config: RunConfig) -> Iterator[str]:
    """Yield the given keys of `speculation` that TensorRT-LLM has no option for."""
    options, engines = config.speculation, config.engine.backend == "tensorrt"
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
    if isinstance(options, Medusa) and options.draft_vocab_size is not None:
        yield "draft_vocab_size"
    if isinstance(options, Medusa) and options.acceptance == "typical":
        yield "acceptance: typical"
