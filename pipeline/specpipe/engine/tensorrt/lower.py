"""Converts a build request into the flags of `trtllm-build`; methods without a mode are refused.

Every relevant flag is written, because TensorRT-LLM's defaults change between releases. Values that
its builder would silently change (`builder.py::build`) are written as they would come out.
"""

from pathlib import Path

from specpipe.core.upstream import ENGINE_MODES, PLAIN
from specpipe.engine.backend import BuildRequest
from specpipe.engine.tensorrt.profiles import Profile

FP8_READERS = ("fp8", "nvfp4")  # quantizations whose attention reads 8-bit caches in blocks
CHUNK = 8192  # tokens of a step that reads prompts, unless one prompt must be read whole
_GEMM_PLUGINS = {"fp8": "disable", "nvfp4": "nvfp4"}  # else the dtype
# Not used by speculation, and refused by some GPUs and releases; TensorRT-LLM's defaults.
_OFF = ("--gemm_swiglu_plugin", "--fp8_rowwise_gemm_plugin", "--low_latency_gemm_plugin",
        "--low_latency_gemm_swiglu_plugin", "--lora_plugin", "--multiple_profiles",
        "--reduce_fusion", "--user_buffer", "--streamingllm", "--pp_reduce_scatter")  # fmt: skip


def takes_drafts(request: BuildRequest) -> bool:
    """Tell whether the engine verifies drafts."""
    verifies = request.method in ENGINE_MODES and request.method != PLAIN
    return verifies and request.role == "target"


def build_flags(
    request: BuildRequest, checkpoint: Path, out: Path, profile: Profile
) -> tuple[str, ...]:
    """Return the command line that builds one engine."""
    flags = {
        "--checkpoint_dir": str(checkpoint),
        "--output_dir": str(out),
        **_size_flags(request, profile),
        **_attention_flags(request, profile),
        **_plugin_flags(request),
        **dict.fromkeys(_OFF, "disable"),
        **_mode_flags(request),
        "--logits_dtype": "float32",
        "--workers": str(request.engine.parallel.world_size),
        "--log_level": "info",
    }
    gather = request.role == "draft" and not profile.gathers_logits_at_runtime
    words = (word for pair in flags.items() for word in pair)
    return ("trtllm-build", *words, *(("--gather_generation_logits",) if gather else ()))


def _size_flags(request: BuildRequest, profile: Profile) -> dict[str, str]:
    return {
        "--max_batch_size": str(request.engine.max_batch_size),
        "--max_input_len": str(longest_prompt(request)),
        "--max_seq_len": str(request.engine.max_seq_len),
        "--max_num_tokens": str(num_tokens(request, profile)),
        "--opt_num_tokens": str(step_tokens(request)),
        "--max_beam_width": "1",
    }


def _attention_flags(request: BuildRequest, profile: Profile) -> dict[str, str]:
    engine = request.engine
    fp8 = engine.kv_cache_quantization == "fp8" and engine.quantization in FP8_READERS
    return {
        "--kv_cache_type": "paged",
        "--tokens_per_block": str(profile.tokens_per_block),
        "--remove_input_padding": "enable",
        "--context_fmha": "enable",
        "--use_paged_context_fmha": _switch(reads_blocks(request)),
        "--use_fp8_context_fmha": _switch(fp8),
    }


def _plugin_flags(request: BuildRequest) -> dict[str, str]:
    engine = request.engine
    ranks = engine.parallel.world_size
    return {
        "--gpt_attention_plugin": engine.dtype,
        "--gemm_plugin": _GEMM_PLUGINS.get(engine.quantization, engine.dtype),
        "--nccl_plugin": engine.dtype if ranks > 1 else "disable",
        "--moe_plugin": "auto",
        "--use_fused_mlp": "enable",
    }


def _mode_flags(request: BuildRequest) -> dict[str, str]:
    if not takes_drafts(request):
        return {}
    mode = ENGINE_MODES[request.method].build
    return {"--speculative_decoding_mode": mode, "--max_draft_len": str(request.draft_nodes)}


def _switch(on: bool) -> str:
    return "enable" if on else "disable"


def reads_blocks(request: BuildRequest) -> bool:
    """Tell whether a prompt can attend to cached blocks (paged-context attention).

    trtllm-build turns it off for 8-bit caches, except for FP8 caches of FP8 and FP4 engines.
    """
    if request.engine.kv_cache_quantization == "fp8":
        return request.engine.quantization in FP8_READERS
    return request.engine.kv_cache_quantization == "none"


def longest_prompt(request: BuildRequest) -> int:
    """Return the number of tokens of the longest prompt that the engine receives.

    The draft/target loop of `draft_model` calls both engines with the prompt and the output so far.
    """
    engine = request.engine
    return engine.max_seq_len if request.method == "draft_model" else engine.max_input_len


def step_tokens(request: BuildRequest) -> int:
    """Return the number of tokens of a step in which every sequence decodes."""
    drafted = request.draft_nodes if takes_drafts(request) else 0
    return request.engine.max_batch_size * (drafted + 1)


def engine_seq_len(request: BuildRequest) -> int:
    """Return the engine's max_seq_len: `trtllm-build` adds the number of draft tokens to it.

    For EAGLE it also adds one token per level of the tree.
    """
    if not takes_drafts(request):
        return request.engine.max_seq_len
    return request.engine.max_seq_len + request.draft_nodes + request.model.num_eagle_layers


def reads_in_chunks(request: BuildRequest) -> bool:
    """Tell whether an engine reads a long prompt in several steps (chunked context).

    It needs attention to cached blocks. With heads or drafters in the engine it was not tried.
    """
    plain = request.method in (PLAIN, "draft_model") and request.engine.backend == "tensorrt"
    return plain and reads_blocks(request) and longest_prompt(request) > CHUNK


def num_tokens(request: BuildRequest, profile: Profile) -> int:
    """Return the most tokens of one step: a whole prompt with its draft, or 8192 of several.

    Prompts that are read in chunks need no more than 8192. The lower bound is one step with all
    drafts, and one block. The upper bound is the capacity of all sequences. trtllm-build does not
    change a number between these bounds.
    """
    prompt = longest_prompt(request) + (request.draft_nodes if takes_drafts(request) else 0)
    if reads_in_chunks(request):
        prompt = CHUNK
    several = min(CHUNK, request.engine.max_batch_size * longest_prompt(request))
    wanted = max(prompt, several, step_tokens(request), profile.tokens_per_block)
    return min(wanted, request.engine.max_batch_size * engine_seq_len(request))
