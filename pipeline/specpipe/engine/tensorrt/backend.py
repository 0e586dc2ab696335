"""The `tensorrt` backend: engines by `trtllm-build`, served by Triton's own C++ backend."""

from collections.abc import Mapping
from pathlib import Path

from specpipe.contracts import (
    HERE,
    BuildRequest,
    Command,
    Facts,
    LoadedEngine,
    Rejection,
    Workshop,
)
from specpipe.engine.tensorrt.build import build_engine
from specpipe.engine.tensorrt.lower import METHODS, build_flags, takes_drafts
from specpipe.engine.tensorrt.medusa import check_medusa
from specpipe.engine.tensorrt.profiles import DEFAULT
from specpipe.errors import Unsupported

RUNTIME_BYTES = 2 * 2**30  # CUDA context, TensorRT runtime and activations, by rule of thumb
_ITEM_BYTES = {  # a weight, scales included
    "none": 2.0,
    "int8": 1.0,
    "int8_sq": 1.0,
    "fp8": 1.0,
    "int4": 0.55,
    "int4_awq": 0.55,
    "nvfp4": 0.57,
}


class TensorRtBackend:
    """See `Backend`."""

    whole_heads = True

    def check(self, request: BuildRequest) -> list[Rejection]:
        """Return every reason why the release of the default profile cannot build this engine."""
        found = []
        if request.method not in METHODS:
            found.append(
                Rejection(
                    f"backend tensorrt has no engine for method {request.method}",
                    f"use one of {', '.join(METHODS)}, or backend: openvino",
                )
            )
        elif takes_drafts(request) and request.draft_nodes == 0:
            found.append(
                Rejection(
                    f"method {request.method} drafts no token, and trtllm-build needs at least one",
                    "raise the sizes under speculation, or use method: none",
                )
            )
        if request.gpu is None:
            found.append(
                Rejection(
                    "backend tensorrt builds for one kind of GPU, but engine.gpu is not given",
                    "set engine.gpu, e.g. H100-SXM",
                )
            )
        if request.dtype == "float32":
            found.append(
                Rejection(
                    "float32 engines are not served on GPUs",
                    "set engine.dtype: bfloat16 or float16",
                )
            )
        found += check_medusa(request, DEFAULT.tensorrt_llm)
        ranks = request.tp_size * request.pp_size
        model = request.model
        if model.num_attention_heads % request.tp_size:
            found.append(
                Rejection(
                    f"{request.role}: {model.num_attention_heads} heads do not divide "
                    f"by tp_size {request.tp_size}",
                    "change engine.tp_size",
                )
            )
        if model.num_hidden_layers % request.pp_size:
            found.append(
                Rejection(
                    f"{request.role}: {model.num_hidden_layers} layers do not divide "
                    f"by pp_size {request.pp_size}",
                    "change engine.pp_size",
                )
            )
        if ranks > 8:
            found.append(
                Rejection(
                    f"{ranks} ranks need more than one machine of 8 GPUs",
                    "lower engine.tp_size or engine.pp_size",
                )
            )
        return found

    def versions(self) -> Mapping[str, str]:
        """Name what the engine's bytes depend on."""
        return {
            "tensorrt_llm": DEFAULT.tensorrt_llm,
            "tensorrt": DEFAULT.tensorrt,
            "container": DEFAULT.container,
        }

    def commands(self, request: BuildRequest, checkpoint: Path, out: Path) -> list[Command]:
        """Return the `trtllm-build` call for this engine."""
        if request.method not in METHODS:
            return []
        return [Command("compile", build_flags(request, checkpoint, out, DEFAULT))]

    def memory_bytes(self, request: BuildRequest) -> int:
        """Estimate the memory on each GPU in bytes: weights, KV cache and the runtime."""
        ranks = request.tp_size * request.pp_size
        weights = request.model.num_parameters * _ITEM_BYTES[request.quantization]
        cache = request.model.kv_bytes(
            request.max_seq_len, bytes_per_value=2 if request.kv_cache_quantization == "none" else 1
        )
        return int((weights + cache * request.max_batch_size) / ranks) + RUNTIME_BYTES

    def build(
        self, request: BuildRequest, checkpoint: Path, out: Path, shop: Workshop = HERE
    ) -> Facts:
        """Run the planned `trtllm-build`, here or in the container; see `build_engine`."""
        (command,) = self.commands(request, checkpoint.absolute(), out.absolute())
        return build_engine(request, command, out.absolute(), DEFAULT, shop)

    def load(self, engine: Path) -> LoadedEngine:
        """Refuse: TensorRT-LLM engines are driven by Triton's own backend, not from here."""
        raise Unsupported("a TensorRT-LLM engine is served by Triton's tensorrtllm backend")
