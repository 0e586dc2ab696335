"""The parameters of upstream's C++ model `tensorrt_llm`, one value for each key of a release.

Upstream treats an empty value as "not given": its parsers throw on it and use their default
(inflight_batcher_llm/src/utils.cc). The files contain no placeholders.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from specpipe.config.speculation import Lookahead, Medusa, Speculation
from specpipe.config.upstream_methods import Eagle
from specpipe.core.contracts import Role
from specpipe.core.errors import Unsupported
from specpipe.core.trees import TreePath
from specpipe.core.upstream import ENGINE_MODES, KV_BLOCK
from specpipe.engine.backend import BuildRequest
from specpipe.engine.tensorrt.lower import reads_in_chunks
from specpipe.plan.memory import KV_SHARE, KvBudget
from specpipe.repository.placement import Placement, gpu_device_ids, participant_ids
from specpipe.repository.signature import signatures
from specpipe.repository.tokenizer_info import INFO_PATH

WORKER = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"


@dataclass(frozen=True)
class EnginePlan:
    """The facts that determine the parameters of one engine's model."""

    request: BuildRequest
    ranks: Mapping[Role, int]  # of every engine on these GPUs
    placement: Placement
    speculation: Speculation
    engine_dir: Path  # as the server sees it
    table: str
    budget: KvBudget | None = None  # None: the plan does not know the GPU's memory
    tokenizer_info: Path | None = None  # as the server sees it; None: the engine takes no guides


def engine_parameters(plan: EnginePlan) -> dict[str, str]:
    """Return every parameter of the release's `tensorrt_llm`.

    Raises Unsupported if Triton cannot configure the method in this release.
    """
    names = signatures(plan.table)["tensorrt_llm"].parameters
    method = plan.speculation.method
    if method == "lookahead" and "lookahead_window_size" not in names:
        raise Unsupported(
            "method lookahead cannot be configured through Triton before TensorRT-LLM 0.19",
            hint="set engine.tensorrt_llm: 1.2.1",
        )
    chunks = {"enable_chunked_context": str(reads_in_chunks(plan.request)).lower()}
    values = {
        **_FIXED,
        **chunks,
        **_cache(plan),
        **_method(plan.speculation),
        **_place(plan),
        **_guides(plan.tokenizer_info),
    }
    return {name: values[name] for name in names}


_FIXED = {
    "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
    "batch_scheduler_policy": "guaranteed_no_evict",
    "cancellation_check_period_ms": "100",
    "cross_kv_cache_fraction": "",
    "cuda_graph_cache_size": "0",
    "cuda_graph_mode": "false",
    "enable_context_fmha_fp32_acc": "false",
    "enable_trt_overlap": "false",
    "encoder_model_path": "",
    "exclude_input_in_output": "false",  # set in every request of our calls
    "executor_worker_path": WORKER,
    "gpt_model_type": "inflight_fused_batching",  # required by every method
    "gpu_weights_percent": "1.0",
    "iter_stats_max_iterations": "1000",
    "kv_cache_host_memory_bytes": "0",
    "kv_cache_onboard_blocks": "true",
    "lora_cache_gpu_memory_fraction": "0.05",
    "lora_cache_host_memory_bytes": "1073741824",
    "lora_cache_max_adapter_size": "64",
    "lora_cache_optimal_adapter_size": "8",
    "lora_prefetch_dir": "",
    "max_beam_width": "1",
    "normalize_log_probs": "true",
    "num_nodes": "1",
    "request_stats_max_iterations": "0",
    "sink_token_length": "",
    "speculative_decoding_fast_logits": "false",
    "stats_check_period_ms": "100",
    "tokenizer_dir": "",
}


def _cache(plan: EnginePlan) -> dict[str, str]:
    """Two engines on the same GPUs get token budgets, so the order of loading has no effect.

    If the plan sets no budget, the budget is the longest sequence of every slot, with the draft
    tokens to be verified, in whole blocks. If the plan fits, neither engine reaches its share.
    """
    request, budget = plan.request, plan.budget
    shared = len(plan.ranks) > 1
    row = -(-(request.engine.max_seq_len + request.draft_nodes + 1) // KV_BLOCK) * KV_BLOCK
    tokens = budget.tokens if budget else request.engine.max_batch_size * row
    return {
        "enable_kv_cache_reuse": "true",  # the loop resends the whole sequence at every step
        "kv_cache_free_gpu_mem_fraction": str(budget.fraction if budget else KV_SHARE),
        "max_tokens_in_paged_kv_cache": str(tokens) if shared else "",
        "max_attention_window_size": "",  # length of the engine, which includes the draft tokens
    }


def _method(options: Speculation) -> dict[str, str]:
    lookahead = options if isinstance(options, Lookahead) else None
    medusa = options if isinstance(options, Medusa) else None
    eagle = options if isinstance(options, Eagle) else None
    return {
        "decoding_mode": ENGINE_MODES[options.method].decoding,
        "multi_block_mode": "false" if medusa or eagle else "true",
        "medusa_choices": choices(_tree(medusa)) if medusa else "",
        "eagle_choices": choices(_tree(eagle)) if eagle else "",
        "lookahead_window_size": str(lookahead.window_size) if lookahead else "",
        "lookahead_ngram_size": str(lookahead.ngram_size) if lookahead else "",
        "lookahead_verification_set_size": str(lookahead.verification_set_size)
        if lookahead
        else "",
    }


def _guides(tokenizer_info: Path | None) -> dict[str, str]:
    return {
        "guided_decoding_backend": "xgrammar" if tokenizer_info else "",
        INFO_PATH: str(tokenizer_info or ""),
    }


def _tree(options: Medusa | Eagle) -> tuple[TreePath, ...]:
    if isinstance(options.tree, str):
        raise Unsupported(
            f"speculation.tree is {options.tree}: TensorRT-LLM wants one tree for every step",
            hint="set tree: auto, or list its paths",
        )
    return options.tree


def choices(tree: tuple[TreePath, ...]) -> str:
    """Return a tree in upstream's notation: `{0}, {0, 0}, {1}`."""
    return ", ".join("{" + ", ".join(str(n) for n in path) + "}" for path in tree)


def _place(plan: EnginePlan) -> dict[str, str]:
    role = plan.request.role
    return {
        "gpt_model_path": str(plan.engine_dir),
        "gpu_device_ids": gpu_device_ids(plan.ranks[role]),
        "participant_ids": participant_ids(role, plan.ranks, plan.placement),
    }
