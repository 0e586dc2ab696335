"""Requirements of TensorRT-LLM's EAGLE engines: `tensorrt_llm/models/eagle` and `builder.py`.

Taken from the sources of TensorRT-LLM 1.x; nothing here was run on a GPU.
"""

from collections.abc import Iterator

from specpipe.core.errors import Rejection
from specpipe.engine.backend import BuildRequest

BASES = ("LlamaForCausalLM", "MistralForCausalLM")  # computed by TensorRT-LLM's LLaMAForCausalLM
MAX_BATCH_SIZE = 512


def check_eagle(request: BuildRequest) -> Iterator[Rejection]:
    """Refuse settings that an engine with an EAGLE drafter does not support."""
    if not request.model.num_eagle_layers:
        return
    architecture = request.model.architecture
    if architecture not in BASES:
        yield Rejection(
            f"TensorRT-LLM's EAGLE model cannot be built on {architecture}, only on "
            f"{', '.join(BASES)}",
            "use method: draft_model or lookahead, or eagle3 with backend: llmapi",
        )
    if request.engine.max_batch_size > MAX_BATCH_SIZE:
        yield Rejection(
            f"EAGLE engines support at most {MAX_BATCH_SIZE} sequences, but engine.max_batch_size "
            f"is {request.engine.max_batch_size}",
            f"set engine.max_batch_size to {MAX_BATCH_SIZE} or less",
        )
    if request.engine.kv_cache_quantization != "none":
        yield Rejection(
            f"the EAGLE drafter shares the target's KV cache and has no scales for an "
            f"{request.engine.kv_cache_quantization} KV cache",
            "set engine.kv_cache_quantization: none",
        )
