"""From a build request to the flags of `trtllm-build`; a method without a row is refused.

Every flag that matters is written, because upstream's defaults change between releases.
"""

from pathlib import Path

from specpipe.contracts import BuildRequest
from specpipe.engine.tensorrt.profiles import Profile

# method -> the flags that it adds to the engine of each role
_METHOD_FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    "none": {"target": ()},
    "draft_model": {
        "target": ("--speculative_decoding_mode", "draft_tokens_external"),
        "draft": (),
    },
    "lookahead": {"target": ("--speculative_decoding_mode", "lookahead_decoding")},
}

METHODS = tuple(_METHOD_FLAGS)


def takes_drafts(request: BuildRequest) -> bool:
    """Tell whether the engine verifies drafts; `request.method` is one of METHODS."""
    return bool(_METHOD_FLAGS[request.method][request.role])


def build_flags(
    request: BuildRequest, checkpoint: Path, out: Path, profile: Profile
) -> tuple[str, ...]:
    """Return the command line that builds one engine.

    The target of `draft_model` sees prompt and output again in every call and relies on the reuse
    of KV blocks, so it needs paged context attention and room for whole sequences.
    """
    flags = {
        "--checkpoint_dir": str(checkpoint),
        "--output_dir": str(out),
        "--max_batch_size": str(request.max_batch_size),
        "--max_input_len": str(_input_len(request)),
        "--max_seq_len": str(request.max_seq_len),
        "--max_num_tokens": str(_num_tokens(request)),
        "--max_beam_width": "1",
        "--kv_cache_type": "paged",
        "--tokens_per_block": str(profile.tokens_per_block),
        "--remove_input_padding": "enable",
        "--context_fmha": "enable",
        "--use_paged_context_fmha": "enable",
        "--gpt_attention_plugin": request.dtype,
        "--gemm_plugin": request.dtype,
        "--workers": str(request.tp_size * request.pp_size),
    }
    method = _METHOD_FLAGS[request.method][request.role]
    if takes_drafts(request):
        method += ("--max_draft_len", str(request.draft_nodes))
    return ("trtllm-build", *(part for pair in flags.items() for part in pair), *method)


def _input_len(request: BuildRequest) -> int:
    return request.max_seq_len if request.method == "draft_model" else request.max_input_len


def _num_tokens(request: BuildRequest) -> int:
    """Return the tokens of one step: prompts in pieces of at most 8192, or every draft at once."""
    return max(min(8192, request.max_seq_len), request.max_batch_size * (request.draft_nodes + 1))
