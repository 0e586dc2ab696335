"""The arguments of vLLM: `--speculative-config`, and the command line of `vllm serve`.

`num_speculative_tokens_per_batch_size` stands for `max_concurrency`: ranges of the batch size, each
with its number of draft tokens (`config/speculative.py`).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from specpipe.config.speculation import PromptLookup
from specpipe.config.upstream_methods import Suffix
from specpipe.engine.backend import BuildRequest
from specpipe.engine.vllm.releases import VllmRelease, default_release

Field = str | int | float | list[list[int]]
GPUS_A_NODE = 8  # at most; more ranks span nodes
_GIB = 2**30


@dataclass(frozen=True)
class ClusterNode:
    """A node of several: its rank, and the address of the first one, which may be variables."""

    count: str
    rank: str
    first_address: str
    answers: bool  # the first node has the OpenAI API, the others have none

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags that make it one of several."""
        flags = ("--nnodes", self.count, "--node-rank", self.rank, "--master-addr")
        own = () if self.answers else ("--headless",)
        return (*flags, self.first_address, *own)


def speculative_config(
    request: BuildRequest, release: VllmRelease | None = None
) -> dict[str, Field]:
    """Return SpeculativeConfig's fields for a run; empty for plain decoding.

    Raises ValueError for a field that the release does not have.
    """
    release = release or default_release()
    options = request.speculation
    if options.method == "none":
        return {}
    fields: dict[str, Field] = {
        "method": release.methods[options.method],
        "num_speculative_tokens": options.num_draft_tokens,
        **_draft(request),
        **_matching(request),
        **_schedule(request),
    }
    unknown = sorted(fields.keys() - release.speculative_fields)
    if unknown:
        raise ValueError(f"vLLM {release.name} has no SpeculativeConfig field {unknown[0]}")
    return fields


def _draft(request: BuildRequest) -> dict[str, Field]:
    """Return the folder or the id of the drafter, if the method has one."""
    if "draft" not in request.sources:
        return {}
    revision = request.revisions.get("draft")
    return {"model": request.sources["draft"], **({"revision": revision} if revision else {})}


def _matching(request: BuildRequest) -> dict[str, Field]:
    options = request.speculation
    if isinstance(options, PromptLookup):
        return {
            "prompt_lookup_min": options.min_matching_ngram_size,
            "prompt_lookup_max": options.max_matching_ngram_size,
        }
    if isinstance(options, Suffix):
        return {
            "suffix_decoding_max_tree_depth": options.max_tree_depth,
            "suffix_decoding_max_cached_requests": options.max_cached_requests,
            "suffix_decoding_max_spec_factor": options.max_spec_factor,
            "suffix_decoding_min_token_prob": options.min_token_prob,
        }
    return {}


def _schedule(request: BuildRequest) -> dict[str, Field]:
    """Return the ranges of batch sizes, if the run drafts up to a number of sequences only."""
    options, largest = request.speculation, request.engine.max_batch_size
    few = options.max_concurrency
    if few is None or few >= largest:
        return {}
    ranges = [[1, few, options.num_draft_tokens], [few + 1, largest, 0]]
    return {"num_speculative_tokens_per_batch_size": ranges}


def serve_command(request: BuildRequest, node: ClusterNode | None = None) -> tuple[str, ...]:
    """Return the command line of `vllm serve`, without the address that it listens on."""
    engine, speculation = request.engine, speculative_config(request)
    parallel = engine.parallel
    argv = ["vllm", "serve", request.sources["target"]]
    if revision := request.revisions.get("target"):
        argv += ["--revision", revision, "--tokenizer-revision", revision]
    argv += ["--dtype", engine.dtype, "--max-model-len", str(engine.max_seq_len)]
    argv += ["--max-num-seqs", str(engine.max_batch_size)]
    # Else generation_config.json of the model would change requests that set no such option.
    argv += ["--generation-config", "vllm"]
    argv += ["--tensor-parallel-size", str(parallel.tp_size)] if parallel.tp_size > 1 else []
    argv += ["--pipeline-parallel-size", str(parallel.pp_size)] if parallel.pp_size > 1 else []
    argv += ["--enable-expert-parallel"] if parallel.moe_ep_size > 1 else []
    if engine.kv_cache_quantization != "none":
        argv += ["--kv-cache-dtype", engine.kv_cache_quantization]
    if engine.gpu is None and parallel.pp_size == 1:  # compiling takes over a minute a start
        argv += ["--enforce-eager"]
    if speculation:
        argv += ["--speculative-config", json.dumps(speculation, sort_keys=True)]
        argv += ["--per-request-spec-decode-metrics", "summary"]
    return (*argv, *(node.flags if node else ()))


def environment(request: BuildRequest) -> Mapping[str, str]:
    """Return the variables of a server; on a CPU they give the KV cache its size in GiB."""
    if request.engine.gpu is not None:
        return {}
    engine, bytes_each = request.engine, 4 if request.engine.dtype == "float32" else 2
    tokens = engine.max_batch_size * (engine.max_seq_len + request.draft_nodes)
    size = request.model.kv_bytes(tokens, bytes_per_value=bytes_each)
    return {"VLLM_CPU_KVCACHE_SPACE": str(max(1, math.ceil(size / _GIB)))}


def node_count(request: BuildRequest) -> int:
    """Return the number of machines of eight GPUs that the ranks of a run take."""
    return math.ceil(request.engine.parallel.world_size / GPUS_A_NODE)
