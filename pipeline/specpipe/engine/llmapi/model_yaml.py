"""The arguments of `tensorrt_llm.LLM`, as YAML: for Triton's `llmapi` model, and for other fronts.

The fields, and their spelling in each release, are in `releases.json`. Nothing here was run on a
GPU.
"""

from collections.abc import Mapping

import yaml

from specpipe.config.method_parts import SuffixOptions
from specpipe.config.speculation import Eagle3, InGraph, PromptLookup, WithUpstreamDraft
from specpipe.config.upstream_methods import SuffixAutomaton
from specpipe.engine.backend import BuildRequest
from specpipe.engine.llmapi.releases import LlmApiRelease
from specpipe.engine.tensorrt.lower import CHUNK, num_tokens
from specpipe.engine.tensorrt.profiles import Profile

FILE = "model.yaml"
Value = str | int | float | bool | Mapping[int, int] | Mapping[str, int | bool]
Section = dict[str, Value]
_LONGEST_MATCH = -1
TREE, TREE_SIZES = "use_dynamic_tree", ("dynamic_tree_max_topK", "max_total_draft_tokens")


def model_yaml(request: BuildRequest, profile: Profile) -> str:
    """Return the text of model.yaml for a target; the profile must have an LLM API."""
    triton = {"max_batch_size": 0, "decoupled": request.streams}
    return to_yaml({**llm_arguments(request, profile), "triton_config": triton})


def to_yaml(values: Mapping[str, object]) -> str:
    """Return arguments as YAML, in their order."""
    return yaml.safe_dump(dict(values), sort_keys=False)


def llm_arguments(request: BuildRequest, profile: Profile) -> dict[str, Value | Section]:
    """Return the keyword arguments of `LLM` for a target; the profile must have an LLM API."""
    engine, release = request.engine, profile.llmapi
    if release is None:
        raise ValueError(f"TensorRT-LLM {profile.tensorrt_llm} has no profile of its LLM API")
    speculation = _speculative_config(request, release)
    outside = request.method in release.two_models
    return {
        "model": request.sources["target"],
        **_revision(request),
        "backend": "pytorch",
        "dtype": engine.dtype,
        "tensor_parallel_size": engine.parallel.tp_size,
        "pipeline_parallel_size": engine.parallel.pp_size,
        "max_batch_size": engine.max_batch_size,
        "max_input_len": engine.max_input_len,
        "max_seq_len": engine.max_seq_len,
        "max_num_tokens": _num_tokens(request, profile),
        **({"enable_chunked_prefill": True} if _reads_in_chunks(request) else {}),
        "kv_cache_config": _kv_cache_config(request, release),
        **({"speculative_config": speculation} if speculation else {}),
        **({"disable_overlap_scheduler": True} if outside else {}),
    }


def _revision(request: BuildRequest) -> dict[str, str]:
    """Return the revision at which TensorRT-LLM downloads model and tokenizer, if one is set."""
    revision = request.revisions.get("target")
    return {"revision": revision, "tokenizer_revision": revision} if revision else {}


def _reads_in_chunks(request: BuildRequest) -> bool:
    """Tell whether a prompt may be longer than a step, so that it is read in several."""
    return request.engine.max_input_len > CHUNK


def _num_tokens(request: BuildRequest, profile: Profile) -> int:
    """Return the most tokens of a step: no fewer than a step in which all sequences decode."""
    decoding = request.engine.max_batch_size * (request.draft_nodes + 1)
    prompts = CHUNK if _reads_in_chunks(request) else num_tokens(request, profile)
    return max(prompts, decoding)


def _kv_cache_config(request: BuildRequest, release: LlmApiRelease) -> Section:
    """Return the KV cache's share of free memory, its type, and whether blocks are reused."""
    cache = request.engine.kv_cache_quantization
    two_caches = request.method == "draft_model" and request.method in release.two_models
    return {
        "free_gpu_memory_fraction": 0.9,
        "enable_block_reuse": not two_caches,
        "dtype": "auto" if cache == "none" else cache,
    }


def _speculative_config(request: BuildRequest, release: LlmApiRelease) -> Section:
    """Return `speculative_config` for the method; empty for plain decoding."""
    record = release.methods.get(request.method)
    if record is None:
        return {}
    wanted = drafting_fields(request)
    spelled = {record.spell(name) or name: value for name, value in wanted.items()}
    # Else TensorRT-LLM samples greedily, whatever a request asks for, and does not tell.
    flag = release.sampling == "flag" and isinstance(request.speculation, InGraph)
    sampling: Section = {"allow_advanced_sampling": True} if flag else {}
    return {"decoding_type": record.decoding_type, **spelled, **sampling}


def drafting_fields(request: BuildRequest) -> Section:
    """Return the fields that a run's options stand for, by their names in the newest release."""
    options = request.speculation
    fields: Section = {"max_draft_len": options.num_draft_tokens}
    if options.max_concurrency is not None:
        fields["max_concurrency"] = options.max_concurrency
    if isinstance(options, WithUpstreamDraft) or request.method == "draft_model":
        fields["speculative_model"] = request.sources.get("draft", "")
    if isinstance(options, PromptLookup):
        fields["max_matching_ngram_size"] = options.max_matching_ngram_size
    if isinstance(options, SuffixAutomaton):
        fields["max_matching_ngram_size"] = options.max_matching_ngram_size or _LONGEST_MATCH
        if options.enable_global_pool:
            fields["enable_global_pool"] = True
    if isinstance(options, Eagle3) and options.tree == "dynamic":
        fields |= _tree(options)
    return fields | _in_graph(options) if isinstance(options, InGraph) else fields


def _tree(options: Eagle3) -> Section:
    """Return the sizes of a growing tree: levels, nodes that each adds, and nodes of a step."""
    return {
        "max_draft_len": options.draft_len_per_beam,
        "use_dynamic_tree": True,
        "dynamic_tree_max_topK": options.num_beams,
        "max_total_draft_tokens": options.num_draft_tokens,
    }


def _in_graph(options: InGraph) -> Section:
    fields: Section = {}
    if options.draft_len_schedule is not None:
        schedule = options.draft_len_schedule
        fields["draft_len_schedule"] = {int(size): length for size, length in schedule.items()}
    suffix: SuffixOptions | None = getattr(options, "sa_config", None)
    if suffix is not None:
        fields["sa_config"] = {
            "threshold": suffix.threshold,
            "enable_global_pool": suffix.enable_global_pool,
        }
    if getattr(options, "use_rejection_sampling", False):
        fields["use_rejection_sampling"] = True
    return fields
