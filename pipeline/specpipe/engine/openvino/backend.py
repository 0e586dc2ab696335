"""The `openvino` backend: builds engines for x86-64 and ARM CPUs and runs them."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as op

from specpipe.artifacts import read_model_config
from specpipe.building import (
    HERE,
    ONE_RANK,
    BuildRequest,
    Command,
    Facts,
    Footprint,
    Rejection,
    Workshop,
)
from specpipe.endpoint import Endpoint, Serving
from specpipe.engine.openvino.drafter import build_drafter
from specpipe.engine.openvino.endpoint import describe
from specpipe.engine.openvino.heads import build_heads
from specpipe.engine.openvino.memory import drop_mapped_pages
from specpipe.engine.openvino.network import build_network, columns
from specpipe.engine.openvino.rope import exact_positions, rope_table
from specpipe.engine.openvino.runner import Graph, OpenVinoRunner
from specpipe.engine.openvino.weights import GROUP, map_weights
from specpipe.errors import ConfigError

NETWORK, HEADS, DRAFTER = "openvino_model.xml", "openvino_heads.xml", "openvino_drafter.xml"
FORMAT = "2"  # increase it when the graph of the same checkpoint changes
ITEM_BYTES = {
    "int8": 1.0,
    "int4": 0.6,
}  # bytes per weight, scales included; other weights are kept in float32
OVERHEAD_BYTES = 500 * 2**20  # server, libraries and work buffers, without weights and KV cache


@dataclass(frozen=True)
class Precision:
    """How an engine computes, from its `dtype` and `quantization`.

    With quantized weights the plugin's bfloat16 path is slower than its float32 path, so both
    dtypes compute in float32. With `bfloat16`, activations are then rounded to 8 bits in groups of
    32 (OpenVINO's dynamic quantization); the error is as large as that of bfloat16 itself.
    """

    dtype: str
    quantization: str

    @property
    def bfloat16(self) -> bool:
        """Whether arithmetic and KV cache are in bfloat16."""
        return self.dtype == "bfloat16" and self.quantization == "none"

    @property
    def cache_type(self) -> ov.Type:
        """Element type of the KV cache."""
        return ov.Type.bf16 if self.bfloat16 else ov.Type.f32

    def properties(self) -> dict[str, str]:
        """Return the plugin's settings."""
        rounds = self.dtype == "bfloat16" and self.quantization in ITEM_BYTES
        return {
            "INFERENCE_PRECISION_HINT": "bf16" if self.bfloat16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32" if rounds else "0",
            "TBB_PARTITIONER": "STATIC",
        }


@dataclass(frozen=True)
class OpenVinoEngine:
    """A loaded engine; see `LoadedEngine`."""

    graph: Graph
    folder: Path

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self.graph.model.vocab_size

    @property
    def max_seq_len(self) -> int:
        """Maximum number of tokens in one sequence, prompt and output."""
        return self.graph.max_seq_len

    @property
    def pads_steps(self) -> bool:
        """Whether the steps of a speculating sequence are padded to one width.

        In bfloat16 a step of a few rows takes as long as a step of one row, but a change of shape
        costs the plugin several milliseconds.
        """
        return self.graph.bfloat16

    def runner(self, step_width: int = 0) -> OpenVinoRunner:
        """Return a new runner."""
        return OpenVinoRunner(self.graph, step_width if self.pads_steps else 0)

    def trim(self) -> None:
        """Drop the mapped weights file from memory; the plugin has copies in its own layout.

        Rows of the embedding are still read from the file, page by page.
        """
        for graph in (NETWORK, HEADS, DRAFTER):
            drop_mapped_pages((self.folder / graph).with_suffix(".bin"))


class OpenVinoBackend:
    """See `Backend`."""

    whole_heads = False
    serves_sources = False

    def check(self, request: BuildRequest) -> list[Rejection]:
        """Return every reason why this CPU engine cannot be built."""
        model, found = request.model, []
        if request.gpu is not None:
            found.append(
                Rejection(
                    f"backend openvino runs on the CPU, but engine.gpu is {request.gpu}",
                    "remove engine.gpu or set backend: tensorrt",
                )
            )
        if request.parallel != ONE_RANK:
            found.append(
                Rejection(
                    "the OpenVINO backend supports tp_size 1 only (one rank)",
                    "remove engine.tp_size, engine.pp_size, engine.moe_ep_size and the keys of "
                    "a parallel embedding",
                )
            )
        if request.dtype == "float16":
            found.append(
                Rejection(
                    "engine.dtype is float16; the OpenVINO backend supports float32 and bfloat16",
                    "set engine.dtype: bfloat16",
                )
            )
        if request.kv_cache_quantization != "none":
            found.append(
                Rejection(
                    "the OpenVINO backend does not support kv_cache_quantization",
                    "remove engine.kv_cache_quantization, or use backend: tensorrt",
                )
            )
        widths = columns(model)
        if request.quantization == "int4" and any(w % GROUP for w in widths):
            found.append(
                Rejection(
                    f"int4 needs layer widths that are multiples of {GROUP}; the {request.role} "
                    f"has {widths}",
                    "set engine.quantization: int8",
                )
            )
        longest = exact_positions(model)
        if longest is not None and request.max_seq_len > longest:
            found.append(
                Rejection(
                    f"the {request.role} uses LongRoPE with different factors beyond {longest} "
                    "tokens, which the OpenVINO backend does not support",
                    f"set engine.max_seq_len to {longest} or less",
                )
            )
        return found

    def versions(self, release: str | None = None) -> Mapping[str, str]:
        """Return the versions that the engine's bytes depend on."""
        return {"openvino": ov.get_version(), "format": FORMAT}

    def commands(self, request: BuildRequest, checkpoint: Path, out: Path) -> list[Command]:
        """Return no commands: the graph is built in this process."""
        return []

    def files(self, request: BuildRequest) -> Mapping[str, str]:
        """Return nothing: no file of the engine is known before it is built."""
        return {}

    def footprint(self, request: BuildRequest) -> Footprint:
        """Return an upper estimate of the memory of the served engine."""
        precision = Precision(request.dtype, request.quantization)
        item = ITEM_BYTES.get(request.quantization, 4.0)
        if request.quantization == "none" and request.dtype != "float32":
            item = 2
        weights = int(request.model.num_parameters * item)
        if request.model.num_medusa_heads:
            weights += request.model.vocab_size * request.model.hidden_size  # in 8 bits, shared
        if request.model.redrafter:
            weights += request.model.guesser_parameters(request.model.vocab_size)
            weights += 2 * request.model.vocab_size * request.model.hidden_size  # its embeddings
        return Footprint(
            weights,
            request.model.kv_bytes(1, bytes_per_value=2 if precision.bfloat16 else 4),
            request.max_batch_size * request.max_seq_len,
            activations=0,
            runtime=OVERHEAD_BYTES,
        )

    def build(
        self, request: BuildRequest, checkpoint: Path, out: Path, shop: Workshop = HERE
    ) -> Facts:
        """Write the graphs with their weights, config.json and engine.json into `out`.

        The graphs are the network and, if the checkpoint has them, Medusa heads or a ReDrafter.

        Raises ConfigError if the checkpoint is damaged.
        """
        weights = map_weights(checkpoint / "rank0.safetensors")
        precision = Precision(request.dtype, request.quantization)
        own = request.quantization if request.quantization in ITEM_BYTES else "none"
        network = build_network(request.model, weights, own, precision.cache_type)
        ov.save_model(network, out / NETWORK, compress_to_fp16=False)
        if request.model.num_medusa_heads:
            heads = build_heads(request.model, weights, request.guess_vocabulary)
            ov.save_model(heads, out / HEADS, compress_to_fp16=False)
        if (net := request.model.redrafter) is not None:
            drafter = build_drafter(request.model, net, weights, request.guess_vocabulary)
            ov.save_model(drafter, out / DRAFTER, compress_to_fp16=False)
        shutil.copyfile(checkpoint / "config.json", out / "config.json")
        limits = {
            "backend": "openvino",
            "dtype": request.dtype,
            "quantization": request.quantization,
            "max_batch_size": request.max_batch_size,
            "max_input_len": request.max_input_len,
            "max_seq_len": request.max_seq_len,
        }
        (out / "engine.json").write_text(json.dumps(limits, indent=2, sort_keys=True) + "\n")
        return {}

    def endpoint(self, serving: Serving) -> Endpoint:
        """Return how a run is served and called."""
        return describe(serving)

    def load(self, engine: Path) -> OpenVinoEngine:
        """Compile the graph for this CPU; takes about a second for SmolLM2-135M.

        Raises ConfigError if the engine's files are missing or damaged.
        """
        model = read_model_config(engine)
        try:
            limits = json.loads((engine / "engine.json").read_text())
            core = ov.Core()
            network = core.read_model(engine / NETWORK)
            precision = Precision(limits["dtype"], limits["quantization"])
            _mark_decompression(network)
            if len(os.sched_getaffinity(0)) == 1:
                _prevent_fused_mlp(network)
            compiled = core.compile_model(network, "CPU", precision.properties())
            heads = _load_guesser(core, engine / HEADS) if model.num_medusa_heads else None
            drafter = _load_guesser(core, engine / DRAFTER) if model.redrafter else None
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(
                f"{engine}: the engine cannot be loaded: {error}",
                hint="run `specpipe compile` again",
            ) from error
        length = int(limits["max_seq_len"])
        table = rope_table(model, length)
        return OpenVinoEngine(
            Graph(compiled, model, table, length, precision.bfloat16, heads, drafter), engine
        )


def _load_guesser(core: ov.Core, graph: Path) -> ov.InferRequest:
    """Compile heads or a drafter; draft tokens need not be exact."""
    network = core.read_model(graph)
    _mark_decompression(network)
    rounded = {
        "INFERENCE_PRECISION_HINT": "f32",  # faster than the default, for weights in 8 bits
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32",
    }
    return core.compile_model(network, "CPU", rounded).create_infer_request()


def _prevent_fused_mlp(network: ov.Model) -> None:
    """Keep the plugin from fusing the MLP: with one CPU it divides by zero.

    It raises SIGFPE in OpenVINO 2026.4. The fusion looks for a Swish without the optional input.
    """
    for node in network.get_ops():
        if node.get_type_name() == "Swish" and node.get_input_size() == 1:
            one = op.constant(np.float32(1))
            twin = op.swish(node.input_value(0), one)
            node.output(0).replace(twin.output(0))


def _mark_decompression(network: ov.Model) -> None:
    """Tell the plugin to keep 16-bit constants instead of widening them at load time.

    The mark is set after loading, since `save_model` does not write it to disk.
    """
    for node in network.get_ops():
        if node.get_type_name() == "Convert":
            source = node.input_value(0).get_node()
            if source.get_type_name() == "Constant" and source.get_element_type().is_real():
                node.get_rt_info()["decompression_0"] = ""
