"""The tensors that upstream declares and these models do not serve, and their refusal.

Not here: values of tensors that are served; see `requests`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.core.errors import Unsupported

# `GuidedDecoder::build` (cpp/tensorrt_llm/batch_manager/guidedDecoder.cpp) of releases 0.17 to 1.2
# moves by one token a step; Triton's model has its parameters from 0.19 on.
GUIDES = "guides, which TensorRT-LLM follows from 0.19 on and without drafts (method: none) only,"

# Declared, because upstream declares them; requests that use them are refused.
UNSUPPORTED = {
    "decoder_text_input": "encoder-decoder models",
    "decoder_input_ids": "encoder-decoder models",
    "encoder_input_features": "encoder-decoder models",
    "cross_attention_mask": "encoder-decoder models",
    "skip_cross_attn_blocks": "encoder-decoder models",
    "image_input": "images",
    "image_bytes_input": "images",
    "image_url_input": "images",
    "image_sizes_input": "images",
    "IMAGE_BYTES": "images",
    "IMAGE_URL": "images",
    "IMAGES": "images",
    "video_bytes_input": "videos",
    "VIDEO_BYTES": "videos",
    "mrope_rotary_cos_sin": "images",
    "prompt_embedding_table": "prompt embedding tables",
    "embedding_bias": "embedding bias",
    "embedding_bias_words": "embedding bias",
    "embedding_bias_weights": "embedding bias",
    "EMBEDDING_BIAS_WORDS": "embedding bias",
    "EMBEDDING_BIAS_WEIGHTS": "embedding bias",
    "lora_task_id": "LoRA adapters",
    "lora_weights": "LoRA adapters",
    "lora_config": "LoRA adapters",
    "guided_decoding_guide_type": GUIDES,
    "guided_decoding_guide": GUIDES,
    "return_context_logits": "context logits",
    "return_generation_logits": "generation logits",
    "draft_input_ids": "drafts of the client's own",
    "draft_logits": "drafts of the client's own",
    "draft_acceptance_threshold": "lossy acceptance thresholds",
    "lookahead_window_size": "lookahead settings",
    "lookahead_ngram_size": "lookahead settings",
    "lookahead_verification_set_size": "lookahead settings",
    "runtime_top_p_min": "top_p decay",
    "runtime_top_p_decay": "top_p decay",
    "runtime_top_p_reset_ids": "top_p decay",
    "context_phase_params": "disaggregated serving",
}


SINGLE_VALUED = {  # tensors with one supported value, and the meaning of other values
    "beam_width": (1, "beam search"),
    "num_return_sequences": (1, "several answers to one request"),
    "beam_search_diversity_rate": (0, "beam search"),
    "length_penalty": (1, "a length penalty, which only beam search has,"),
    "len_penalty": (1, "a length penalty, which only beam search has,"),
}


NOTHING: frozenset[str] = frozenset()


BIAS = frozenset({"embedding_bias_words", "embedding_bias_weights"})


def refuse_unsupported(
    tensors: Mapping[str, NDArray[Any]], supported: frozenset[str] = NOTHING
) -> None:
    """Raise Unsupported if a tensor requests an unsupported feature.

    `supported` are the names that this model takes, unlike others.
    """
    for name, array in tensors.items():
        if name in UNSUPPORTED and name not in supported and _asks(array):
            raise Unsupported(f"{name}: {UNSUPPORTED[name]} are not supported by this server")
        if name in SINGLE_VALUED and array.size:
            only, words = SINGLE_VALUED[name]
            value = array.reshape(-1)[0]
            if value != only:
                raise Unsupported(f"{name} is {value}: {words} is not supported; use {only}")


def _asks(array: NDArray[Any]) -> bool:
    """Tell whether a tensor holds anything but false flags and empty texts."""
    if array.dtype == np.bool_ or array.dtype == object:
        return any(bool(value) for value in array.reshape(-1))
    return array.size > 0
