"""Facts of TensorRT-LLM that several parts need: its names of the methods, its block size."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class EngineMode:
    """The names and the number of one method."""

    build: str  # `--speculative_decoding_mode` of trtllm-build
    number: int  # `SpeculativeDecodingMode`, a bit in the engine's config.json
    decoding: str  # `decoding_mode` of Triton's model `tensorrt_llm`


KV_BLOCK = 64  # tokens; a multiple of every release's tokens_per_block
PLAIN = "none"
# Methods without engines of TensorRT-LLM have no record.
ENGINE_MODES: Mapping[str, EngineMode] = {
    PLAIN: EngineMode("none", 1, "top_k_top_p"),
    "draft_model": EngineMode("draft_tokens_external", 2, "top_k_top_p"),
    "medusa": EngineMode("medusa", 4, "medusa"),
    "lookahead": EngineMode("lookahead_decoding", 8, "lookahead"),
    "redrafter": EngineMode("explicit_draft_tokens", 16, "redrafter"),
    "eagle": EngineMode("eagle", 32, "eagle"),
}
MODE_NUMBERS: Mapping[str, int] = {mode.build: mode.number for mode in ENGINE_MODES.values()}
