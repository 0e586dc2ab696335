"""The `openvino` backend: builds engines for x86-64 and ARM CPUs and runs them."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import openvino as ov

from specpipe.config.run_config import RunConfig
from specpipe.core.artifacts import ARITHMETIC
from specpipe.core.contracts import Role
from specpipe.core.divisibility import ONE_RANK
from specpipe.core.endpoint import Endpoint, Serving
from specpipe.core.errors import Rejection
from specpipe.core.model import ModelConfig
from specpipe.engine.backend import HERE, BuildRequest, Command, Facts, Footprint, Workshop
from specpipe.engine.gpus import Gpu
from specpipe.engine.openvino import options
from specpipe.engine.openvino.attention import padded_layers
from specpipe.engine.openvino.blocks import BLOCK
from specpipe.engine.openvino.drafter import build_drafter
from specpipe.engine.openvino.endpoint import describe
from specpipe.engine.openvino.engine import OpenVinoEngine
from specpipe.engine.openvino.heads import build_heads
from specpipe.engine.openvino.layer_graph import build_layer_drafter
from specpipe.engine.openvino.load import (
    DRAFTER,
    HEADS,
    LAYER,
    NETWORK,
    load_engine,
    pool_blocks,
)
from specpipe.engine.openvino.network import build_network, columns
from specpipe.engine.openvino.precision import ITEM_BYTES, Precision
from specpipe.engine.openvino.rope import exact_positions
from specpipe.engine.openvino.saving import save_graph
from specpipe.engine.openvino.weights import GROUP, map_weights

FORMAT = "5"  # increase it when a graph of the same checkpoint changes; a test tells
OVERHEAD_BYTES = 500 * 2**20  # server, libraries and work buffers, without weights and KV cache


class OpenVinoBackend:
    """See `Backend`."""

    def check(self, request: BuildRequest) -> list[Rejection]:
        """Return every reason why this CPU engine cannot be built."""
        engine = request.engine
        model, found = request.model, []
        if engine.gpu is not None:
            found.append(
                Rejection(
                    f"backend openvino runs on the CPU, but engine.gpu is {engine.gpu}",
                    "remove engine.gpu or set backend: tensorrt",
                )
            )
        if engine.parallel != ONE_RANK:
            found.append(
                Rejection(
                    "the OpenVINO backend supports tp_size 1 only (one rank)",
                    "remove engine.tp_size, engine.pp_size, engine.moe_ep_size and the keys of "
                    "a parallel embedding",
                )
            )
        if engine.dtype == "float16":
            found.append(
                Rejection(
                    "engine.dtype is float16; the OpenVINO backend supports float32 and bfloat16",
                    "set engine.dtype: bfloat16",
                )
            )
        if engine.kv_cache_quantization != "none":
            found.append(
                Rejection(
                    "the OpenVINO backend does not support kv_cache_quantization",
                    "remove engine.kv_cache_quantization, or use backend: tensorrt",
                )
            )
        widths = columns(model)
        if engine.quantization == "int4" and any(w % GROUP for w in widths):
            found.append(
                Rejection(
                    f"int4 needs layer widths that are multiples of {GROUP}; the {request.role} "
                    f"has {widths}",
                    "set engine.quantization: int8",
                )
            )
        longest = exact_positions(model)
        if longest is not None and engine.max_seq_len > longest:
            found.append(
                Rejection(
                    f"the {request.role} uses LongRoPE with different factors beyond {longest} "
                    "tokens, which the OpenVINO backend does not support",
                    f"set engine.max_seq_len to {longest} or less",
                )
            )
        if engine.batch_invariant and padded_layers(model, engine.max_seq_len):
            found.append(
                Rejection(
                    f"engine.batch_invariant is true, but layers of the {request.role} have soft-"
                    "capping of scores, ALiBi or a sliding window, whose results depend on the "
                    "batch",
                    "remove engine.batch_invariant",
                )
            )
        return found

    def check_run(self, config: RunConfig) -> Iterator[Rejection]:
        """Yield every method and option that specpipe's own loop lacks."""
        return options.check_run(config)

    def notes(
        self, config: RunConfig, models: Mapping[Role, ModelConfig], gpu: Gpu | None
    ) -> Iterator[str]:
        """Return nothing; the plan notes what depends on the machine."""
        return iter(())

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
        engine = request.engine
        precision = Precision(engine.dtype, engine.quantization)
        item = ITEM_BYTES.get(engine.quantization, 4.0)
        if engine.quantization == "none" and engine.dtype != "float32":
            item = 2
        weights = int(request.model.num_parameters * item)
        if request.model.num_medusa_heads:
            weights += request.model.vocab_size * request.model.hidden_size  # in 8 bits, shared
        if request.model.redrafter:
            weights += request.model.drafter_parameters(request.model.vocab_size)
            weights += 2 * request.model.vocab_size * request.model.hidden_size  # its embeddings
        kv = request.model.kv_bytes(1, bytes_per_value=precision.kv_bytes)
        if (layer := request.model.eagle3) is not None:
            weights += 2 * layer.parameters(request.model.hidden_size)
            kv += layer.net.kv_bytes(1, bytes_per_value=4) + 4 * layer.net.hidden_size
        blocks = pool_blocks(_pool_tokens(request), engine.max_batch_size, request.draft_nodes)
        return Footprint(
            weights,
            kv,
            blocks * BLOCK,
            activations=0,
            runtime=OVERHEAD_BYTES,
        )

    def build(
        self, request: BuildRequest, checkpoint: Path, out: Path, shop: Workshop = HERE
    ) -> Facts:
        """Write the graphs with their weights, the facts of the model and engine.json into `out`.

        The graphs are the network and, if the checkpoint has one, that of its heads or drafter.

        Raises ConfigError if the checkpoint is damaged.
        """
        engine = request.engine
        weights = map_weights(checkpoint / "rank0.safetensors")
        own = engine.quantization if engine.quantization in ITEM_BYTES else "none"
        network = build_network(
            request.model,
            weights,
            own,
            engine.max_seq_len,
            batch_invariant=engine.batch_invariant,
        )
        save_graph(network, out / NETWORK)
        if request.model.num_medusa_heads:
            heads = build_heads(request.model, weights, request.draft_vocab_size)
            save_graph(heads, out / HEADS)
        if (net := request.model.redrafter) is not None:
            drafter = build_drafter(request.model, net, weights, request.draft_vocab_size)
            save_graph(drafter, out / DRAFTER)
        if (layer := request.model.eagle3) is not None:
            exact = engine.dtype == "float32" and own == "none"
            drafter = build_layer_drafter(request.model, layer, weights, exact=exact)
            save_graph(drafter, out / LAYER)
        for name in ("config.json", ARITHMETIC):
            shutil.copyfile(checkpoint / name, out / name)
        limits = {
            "backend": "openvino",
            "batch_invariant": engine.batch_invariant,
            "draft_nodes": request.draft_nodes,
            "dtype": engine.dtype,
            "quantization": engine.quantization,
            "max_batch_size": engine.max_batch_size,
            "max_input_len": engine.max_input_len,
            "max_seq_len": engine.max_seq_len,
            "kv_cache_tokens": _pool_tokens(request),
            "prefix_cache": engine.prefix_cache,
        }
        text = json.dumps(limits, indent=2, sort_keys=True) + "\n"
        (out / "engine.json").write_text(text, encoding="utf-8")
        return {}

    def endpoint(self, serving: Serving) -> Endpoint:
        """Return how a run is served and called."""
        return describe(serving)

    def load(self, engine: Path) -> OpenVinoEngine:
        """Compile the graphs for this CPU; see `load_engine`."""
        return load_engine(engine)


def _pool_tokens(request: BuildRequest) -> int:
    """Return how many tokens of all sequences are kept at once."""
    engine = request.engine
    return engine.kv_cache_tokens or engine.max_batch_size * engine.max_seq_len
