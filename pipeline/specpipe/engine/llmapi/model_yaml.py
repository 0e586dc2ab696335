"""`model.yaml`: the arguments that Triton's `llmapi` model passes to `tensorrt_llm.LLM`.

The keys follow TensorRT-LLM's `llmapi/llm_args.py` and the `model.yaml` of its Triton backend. The
keys of `speculative_config` differ between releases, see `profiles.LlmApi`. Nothing here was run on
a GPU.
"""

import yaml

from specpipe.config.speculation import PromptLookup
from specpipe.engine.backend import BuildRequest
from specpipe.engine.tensorrt.lower import num_tokens
from specpipe.engine.tensorrt.profiles import LlmApi, Profile

FILE = "model.yaml"
Value = str | int | float | bool
Section = dict[str, Value]


def model_yaml(request: BuildRequest, profile: Profile) -> str:
    """Return the text of model.yaml for a target; the profile must have an LLM API."""
    engine = request.engine
    if profile.llmapi is None:
        raise ValueError(f"TensorRT-LLM {profile.tensorrt_llm} has no profile of its LLM API")
    speculation = _speculative_config(request, profile.llmapi)
    values: dict[str, Value | Section] = {
        "model": request.sources["target"],
        **_revision(request),
        "backend": "pytorch",
        "dtype": engine.dtype,
        "tensor_parallel_size": engine.parallel.tp_size,
        "pipeline_parallel_size": engine.parallel.pp_size,
        "max_batch_size": engine.max_batch_size,
        "max_input_len": engine.max_input_len,
        "max_seq_len": engine.max_seq_len,
        "max_num_tokens": max(
            num_tokens(request, profile), engine.max_batch_size * (request.draft_nodes + 1)
        ),
        "kv_cache_config": _kv_cache_config(request),
        **({"speculative_config": speculation} if speculation else {}),
        **({"disable_overlap_scheduler": True} if _two_models(request) else {}),
        "triton_config": {"max_batch_size": 0, "decoupled": request.streams},
    }
    return yaml.safe_dump(values, sort_keys=False)


def _revision(request: BuildRequest) -> dict[str, str]:
    """Return the revision at which TensorRT-LLM downloads model and tokenizer, if one is set."""
    revision = request.revisions.get("target")
    return {"revision": revision, "tokenizer_revision": revision} if revision else {}


def _two_models(request: BuildRequest) -> bool:
    """Tell whether drafting runs outside the target's graph, which rules out overlap scheduling."""
    return request.method in ("draft_model", "prompt_lookup")


def _kv_cache_config(request: BuildRequest) -> Section:
    """Return the KV cache's share of free memory, its type, and whether blocks are reused."""
    cache = request.engine.kv_cache_quantization
    return {
        "free_gpu_memory_fraction": 0.9,
        "enable_block_reuse": request.method != "draft_model",
        "dtype": "auto" if cache == "none" else cache,
    }


def _speculative_config(request: BuildRequest, spelling: LlmApi) -> Section:
    """Return `speculative_config` for the method; empty for plain decoding."""
    options = request.speculation
    limit: Section = {"max_draft_len": options.num_draft_tokens}
    if options.max_concurrency is not None:
        limit["max_concurrency"] = options.max_concurrency
    # Else TensorRT-LLM samples greedily, whatever a request asks for, and does not tell.
    sampling: Section = {"allow_advanced_sampling": True} if spelling.samples else {}
    draft: Section = {spelling.draft_key: request.sources.get("draft", "")}
    longest = options.max_matching_ngram_size if isinstance(options, PromptLookup) else 0
    sections: dict[str, Section] = {
        "none": {},
        "draft_model": {"decoding_type": spelling.draft_target, **limit, **draft},
        "prompt_lookup": {
            "decoding_type": "NGram",
            **limit,
            "max_matching_ngram_size": longest,
        },
        "eagle3": {"decoding_type": spelling.eagle3, **limit, **draft, **sampling},
        "mtp": {
            "decoding_type": "MTP",
            "num_nextn_predict_layers": options.num_draft_tokens,
            **sampling,
        },
    }
    return sections[options.method]
