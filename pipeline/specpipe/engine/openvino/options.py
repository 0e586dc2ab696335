"""Refusals of what only other backends have: methods that run in their graphs, and their options.

Not here: what one engine cannot be built for; that is `OpenVinoBackend.check`.
"""

from collections.abc import Iterator

from specpipe.config.run_config import RunConfig
from specpipe.config.speculation import Eagle3, InGraph, ReDrafter
from specpipe.config.upstream_methods import Eagle, Suffix
from specpipe.core.errors import Rejection


def check_run(config: RunConfig) -> Iterator[Rejection]:
    """Yield every method and option that specpipe's own loop lacks."""
    options = config.speculation
    if isinstance(options, ReDrafter) and not options.greedy_search:
        yield Rejection(
            "backend openvino drafts the most likely tokens with a ReDrafter; it does not "
            "sample draft tokens",
            "remove speculation.greedy_search, or use backend: tensorrt",
        )
    if isinstance(options, Eagle3):
        yield from _check_eagle3(config, options)
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


def _check_eagle3(config: RunConfig, options: Eagle3) -> Iterator[Rejection]:
    if options.draft.revision is not None:
        yield Rejection(
            f"speculation.draft.revision is {options.draft.revision}, but a folder has none",
            "remove the key; speculation.draft.model names the folder of the drafter",
        )
    for key in ("sa_config", "use_rejection_sampling", "draft_len_schedule"):
        if f"speculation.{key}" in config.places:
            yield Rejection(
                f"backend openvino does not support speculation.{key}",
                "remove the key, or use backend: llmapi",
            )
