"""The table of backends: what a run of each takes for granted. To add one: its folder and an entry.

Not here: what a backend decides for one run; that is a method of `engine.backend.Backend`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Front = Literal["triton", "trtllm_serve", "dynamo", "vllm_serve"]


@dataclass(frozen=True)
class Traits:
    """The facts of a backend that hold for all its runs, and are known without its libraries."""

    implementation: str  # "module:class" of its `Backend`
    title: str  # how messages name what runs its models
    methods: str  # that need no layer of the target, for hints
    own_engine: bool = False  # specpipe's own, for CPUs: its loop decodes, with its batcher
    upstream_engines: bool = False  # trtllm-build compiles engines, Triton's C++ backend runs them
    serves_sources: bool = False  # models are served as they are: none is converted, and of a run
    # only the target is built, which knows its draft
    whole_heads: bool = False  # checkpoints hold Medusa heads in full, in TensorRT-LLM's layout
    drafts_chains: bool = False  # drafts are chains only: `tree: auto` is then one
    pads_draft_vocabulary: bool = True  # else the ranks must divide that of an EAGLE-3 drafter
    runs_on_cpus: bool = False  # without `engine.gpu`, this machine's CPU
    fronts: tuple[Front, ...] = ("triton",)  # values of `serving.front`, the default first
    whole_repository: bool = False  # for Triton it builds the repository: that of a backend of
    # Triton, which specpipe does not call
    program: str | None = None  # serves a run on this machine in place of tritonserver


BACKENDS: Mapping[str, Traits] = {
    "openvino": Traits(
        "specpipe.engine.openvino.backend:OpenVinoBackend",
        title="OpenVINO",
        methods="draft_model or prompt_lookup",
        own_engine=True,
        runs_on_cpus=True,
    ),
    "tensorrt": Traits(
        "specpipe.engine.tensorrt.backend:TensorRtBackend",
        title="TensorRT-LLM",
        methods="draft_model or lookahead",
        upstream_engines=True,
        whole_heads=True,
    ),
    "llmapi": Traits(
        "specpipe.engine.llmapi.backend:LlmApiBackend",
        title="TensorRT-LLM's LLM API",
        methods="eagle3, draft_model or prompt_lookup",
        serves_sources=True,
        whole_heads=True,
        fronts=("triton", "trtllm_serve", "dynamo"),
    ),
    "vllm": Traits(
        "specpipe.engine.vllm.backend:VllmBackend",
        title="vLLM",
        methods="eagle3, draft_model or prompt_lookup",
        serves_sources=True,
        drafts_chains=True,
        pads_draft_vocabulary=False,
        runs_on_cpus=True,
        fronts=("vllm_serve", "triton"),
        whole_repository=True,
        program="vllm",
    ),
}
