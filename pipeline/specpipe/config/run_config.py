"""The YAML file of a run as frozen records. No module below this one reads YAML.

The text under a field documents its key: `scripts/write-docs` makes docs/configuration.md from it.
Relative paths are looked up from the working directory, then from the config's folder; `~` and
environment variables are expanded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from specpipe.config.backends import BACKENDS, Front, Traits
from specpipe.config.consistency import check_consistency
from specpipe.config.keys import at_least, between, matching, not_written, one_of
from specpipe.config.method_parts import REVISION
from specpipe.config.records import read_record
from specpipe.config.speculation import (
    PLAIN,
    DraftModel,
    Eagle3,
    Hybrid,
    Medusa,
    ReDrafter,
    Speculation,
    WithUpstreamDraft,
    redrafter_of,
)
from specpipe.config.training import TrainOptions
from specpipe.config.tree import with_whole_tree
from specpipe.config.upstream_methods import Eagle
from specpipe.config.validation import ValidateOptions as ValidateOptions
from specpipe.config.yaml_nodes import Place
from specpipe.core.contracts import Role
from specpipe.core.divisibility import Parallel
from specpipe.core.model import CacheQuantization, Dtype, Quantization

LEAST_ROWS, PROMPT_ROWS = 128, 64  # of a step; see `RunConfig.max_num_tokens`


@dataclass(frozen=True)
class TargetOptions:
    """The model that is served."""

    model: str
    """A folder, a `.gguf` file, or a Hugging Face id."""
    revision: str | None = field(default=None, metadata=REVISION)
    """Branch, tag or commit of a Hugging Face id. Default: `main`."""


@dataclass(frozen=True)
class EngineOptions:
    """How the engines are compiled, and for which machine."""

    backend: str = field(metadata=one_of(BACKENDS))
    """`openvino`: any CPU. `tensorrt`: engines for NVIDIA GPUs. `llmapi`: TensorRT-LLM without
    engines. `vllm`: [vLLM](vllm.md), on GPUs or, without `gpu`, on a CPU."""
    gpu: str | None = field(default=None, metadata=matching(r".*\S.*", "the name of a GPU"))
    """Required for `tensorrt` and `llmapi`: the GPU, e.g. `H100-SXM`. See
    [the list](support.md#gpus)."""
    dtype: Dtype = "float32"
    """Type of the computation. `openvino`: `float32` or `bfloat16`. `tensorrt`, `llmapi`:
    `bfloat16` or `float16`; the default is refused there."""
    quantization: Quantization = "none"
    """`int8` and `int4` quantize weights only. The other formats are
    [calibrated](quantization.md) and are for GPUs."""
    kv_cache_quantization: CacheQuantization = "none"
    """`tensorrt`: format of the KV cache. `openvino` refuses all but `none`."""
    exclude_modules: tuple[str, ...] | None = None
    """`tensorrt`: patterns of modules that are not quantized. A list replaces the default of
    TensorRT-LLM (`*lm_head`, `*router`, `*vocab_embedding`, ...), extended by drafters."""
    tensorrt_llm: str | None = None
    """`tensorrt`, `llmapi`: the release, in quotes, e.g. `"0.18.2"`. Default: `{release}`."""
    tp_size: int = field(default=0, metadata=at_least(1))
    """GPUs that share every layer (tensor parallelism). Default: the fewest on which the run
    fits. `openvino`: 1 only."""
    pp_size: int = field(default=1, metadata=at_least(1))
    """Pipeline stages that the layers are distributed over."""
    moe_ep_size: int = field(default=1, metadata=at_least(1))
    """How many of the `tp_size` ranks distribute whole experts. The other ranks split each
    expert."""
    use_parallel_embedding: bool = False
    """Split the embedding over the ranks instead of copying it to each. Gemma: always split."""
    embedding_sharding_dim: Literal[0, 1] = 0
    """Split the embedding along the vocabulary (0) or the hidden size (1)."""
    max_batch_size: int = field(default=4, metadata=between(1, 4096))
    """Sequences that are decoded at a time, in one batch."""
    max_input_len: int = field(default=1024, metadata=at_least(1))
    """Longest prompt, in tokens."""
    max_seq_len: int = field(default=2048, metadata=at_least(2))
    """Longest prompt and output together, in tokens."""
    kv_cache_tokens: int | None = field(default=None, metadata=at_least(1))
    """`openvino`: tokens of all sequences in the KV cache, at least `max_seq_len`. Default:
    `max_batch_size` times `max_seq_len`. With less, sequences may have to wait for each other."""
    max_num_tokens: int | None = field(default=None, metadata=at_least(64))
    """`openvino`: rows in one step, that is tokens of prompts, last tokens and draft tokens.
    Default: 64 more than `max_batch_size` sequences with their drafts, at least 128."""
    prefix_cache: bool = True
    """`openvino`: keep the KV cache of ended sequences for prompts that begin alike."""
    batch_invariant: bool = False
    """`openvino`: outputs do not depend on the other sequences in the batch. Slower."""

    def sized_like(self, other: "EngineOptions") -> "EngineOptions":
        """Return these options for as many sequences of such lengths as `other` has."""
        return replace(
            self,
            max_batch_size=other.max_batch_size,
            max_input_len=other.max_input_len,
            max_seq_len=other.max_seq_len,
        )

    @property
    def traits(self) -> Traits:
        """The facts of the backend."""
        return BACKENDS[self.backend]

    @property
    def parallel(self) -> Parallel:
        """How every model of the run is spread over GPUs."""
        return Parallel(
            self.tp_size,
            self.pp_size,
            self.moe_ep_size,
            self.use_parallel_embedding,
            self.embedding_sharding_dim,
        )


@dataclass(frozen=True)
class TlsOptions:
    """PEM files that encrypt the gRPC endpoint."""

    certificate: str
    """PEM file: certificate of the server. gRPC is encrypted; HTTP serves health and metadata
    only."""
    key: str
    """PEM file: private key of the certificate."""
    client_ca: str | None = None
    """PEM file: clients must present a certificate that this authority signed."""


@dataclass(frozen=True)
class ServingOptions:
    """How the engine is served; all keys but `front` are Triton's."""

    front: Front = "triton"
    """`llmapi`: the server. `trtllm_serve` and `dynamo` have an OpenAI API and no Triton; see
    [gpu-serving.md](gpu-serving.md#trtllm-serve-and-dynamo). `vllm_serve` is for backend `vllm`,
    where it is the default."""
    decoupled: bool = True
    """`true`: streaming. `false`: one response per request, for unary gRPC calls."""
    max_queue_size: int = field(default=64, metadata=at_least(1))
    """Requests that may wait. Further requests are answered with UNAVAILABLE."""
    loop: Literal["engine", "bls"] = "engine"
    """`openvino`: `bls` packages the GPU layout, in which Triton's text models call draft and
    target. `tensorrt` always uses it."""
    instances: int | None = field(default=None, metadata=at_least(1))
    """With `bls`: processes of each text model, each with one request at a time. Default:
    `max_batch_size`, at most 16."""
    repository_path: str | None = None
    """`tensorrt`: path of the repository as a tritonserver sees it that you start yourself.
    Default: where it is written."""
    spawn_processes: bool = True
    """`tensorrt`: `false` lets mpirun start the workers of two engines with several ranks
    (Slurm)."""
    tls: TlsOptions | None = None
    """Encryption of gRPC. Default: none."""
    openai: bool = False
    """Deployments: `true` adds a container with the OpenAI API, on port 9000. It has no
    authentication of its own. Not with `tls`."""


@dataclass(frozen=True)
class RunConfig:
    """One run: its models, its speculation, its engine and its validation."""

    name: str = field(
        metadata=matching(
            r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}",
            "at most 100 letters, digits, dots, hyphens and underscores, first a letter or digit",
        )
    )
    """Name of the folders in `engines/`, `triton_repo/` and `reports/`."""
    target: TargetOptions
    engine: EngineOptions
    speculation: Speculation = PLAIN
    serving: ServingOptions = ServingOptions()
    validate: ValidateOptions = field(default_factory=ValidateOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    path: str = field(default="", metadata=not_written())  # where it was read; by `read_config`
    places: Mapping[str, Place] = field(  # the line of every key that was given; likewise
        default_factory=dict, compare=False, repr=False, metadata=not_written()
    )
    remarks: tuple[str, ...] = field(  # former spellings in the file; likewise
        default=(), compare=False, repr=False, metadata=not_written()
    )

    @property
    def baseline(self) -> "RunConfig":
        """The same run without speculation, which `validate.baseline: build` compares with."""
        judged = replace(self.validate, gates={}, baseline=None)
        name = f"{self.name[:90]}.baseline"
        return replace(self, name=name, speculation=PLAIN, validate=judged)

    def models(self) -> dict[Role, str]:
        """Return the source of every checkpoint that this run converts."""
        options = self.speculation
        draft = options.draft if isinstance(options, DraftModel | Hybrid) else None
        return {"target": self.target.model, **({"draft": draft.model} if draft else {})}

    def model_key(self, role: Role) -> str:
        """Return the key whose value `models` has."""
        return "target.model" if role == "target" else "speculation.draft.model"

    def revision(self, role: Role) -> str | None:
        """Return the branch, tag or commit that a model is taken from; None: the main branch."""
        options = self.speculation
        if role == "target":
            return self.target.revision
        if not isinstance(options, DraftModel | Hybrid | WithUpstreamDraft):
            return None
        draft = options.draft
        return draft.revision if draft else None

    def revision_key(self, role: Role) -> str:
        """Return the key whose value `revision` returns."""
        return self.model_key(role).replace(".model", ".revision")

    def drafter(self, role: Role = "target") -> str | None:
        """Return the source of the Medusa heads or of the drafter that a checkpoint contains.

        None if it contains neither.
        """
        options = self.speculation
        if role == "draft":
            draft = options.draft if isinstance(options, DraftModel | Hybrid) else None
            return draft.heads if draft else None
        if (redrafter := redrafter_of(options)) is not None:
            return redrafter.drafter
        if isinstance(options, Eagle):
            return options.drafter
        if isinstance(options, Hybrid) and options.eagle3 is not None:
            return options.eagle3.model
        if isinstance(options, Eagle3):  # the other backends read its folder as it is
            return options.draft.model if self.engine.traits.own_engine else None
        return options.heads if isinstance(options, Medusa | Hybrid) else None

    def drafter_key(self, role: Role) -> str:
        """Return the key whose value `drafter` returns."""
        if role == "draft":
            return "speculation.draft.heads"
        if isinstance(self.speculation, Hybrid) and self.speculation.redrafter is not None:
            return "speculation.redrafter.drafter"
        if isinstance(self.speculation, Hybrid) and self.speculation.eagle3 is not None:
            return "speculation.eagle3.model"
        if isinstance(self.speculation, Eagle3):
            return "speculation.draft.model"
        names = isinstance(self.speculation, ReDrafter | Eagle)
        return "speculation.drafter" if names else "speculation.heads"

    @property
    def max_num_tokens(self) -> int:
        """Rows in one step of the CPU engine: every sequence with its draft, and prompt tokens."""
        engine = self.engine
        decoding = engine.max_batch_size * (1 + self.speculation.num_draft_tokens)
        return engine.max_num_tokens or max(LEAST_ROWS, decoding + PROMPT_ROWS)

    @property
    def lossless(self) -> bool:
        """Whether sampled output has the target's own distribution."""
        return not (
            isinstance(self.speculation, Medusa) and self.speculation.acceptance == "typical"
        )


def read_config(path: Path) -> RunConfig:
    """Read and check a run's YAML file.

    Raises ConfigError with file:line for anything unknown, mistyped, impossible or missing.
    """
    reading = read_record(path, RunConfig)
    config, places = reading.record, reading.places
    config = replace(config, speculation=with_whole_tree(config.speculation, places))
    check_consistency(config, places)
    if "serving.front" not in places:
        front = config.engine.traits.fronts[0]
        config = replace(config, serving=replace(config.serving, front=front))
    if config.engine.gpu is None and not config.engine.tp_size:
        config = replace(config, engine=replace(config.engine, tp_size=1))
    return replace(config, path=str(path), places=places, remarks=reading.remarks)
