"""Loads a built engine: reads and compiles its graphs for this CPU."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from specpipe.core.artifacts import read_model_config
from specpipe.core.drafters import Eagle3Drafter
from specpipe.core.errors import ConfigError
from specpipe.core.machine import cpu_kinds, multiplies_int8
from specpipe.core.model import ModelConfig
from specpipe.engine.openvino.attention import PAGED, describe_paged
from specpipe.engine.openvino.blocks import BLOCK
from specpipe.engine.openvino.engine import Graphs, OpenVinoEngine, PoolOptions
from specpipe.engine.openvino.memory import read_ahead
from specpipe.engine.openvino.precision import Precision
from specpipe.engine.openvino.rope import rope_inputs

NETWORK, HEADS, DRAFTER = "openvino_model.xml", "openvino_heads.xml", "openvino_drafter.xml"
LAYER = "openvino_eagle3.xml"
GRAPHS = (NETWORK, HEADS, DRAFTER, LAYER)
# Draft tokens need not be exact, so activations of layers in 8 bits are rounded too.
_ROUNDED = {
    "INFERENCE_PRECISION_HINT": "f32",  # faster than the default, for weights in 8 bits
    "PERFORMANCE_HINT": "LATENCY",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32",
}


def load_engine(folder: Path) -> OpenVinoEngine:
    """Compile the graphs for this CPU; takes about two seconds for SmolLM2-135M.

    Raises ConfigError if the engine's files are missing or damaged.
    """
    model = read_model_config(folder)
    weights = [(folder / name).with_suffix(".bin") for name in GRAPHS]
    read_ahead(weights)
    try:
        limits = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
        core = ov.Core()
        kind = _precision(limits).cache_type(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        network = _read_network(core, folder / NETWORK, model, kind)
        graphs = Graphs(
            core.compile_model(network, "CPU", _precision(limits).properties(kind)),
            _load_drafter(core, folder / HEADS) if model.num_medusa_heads else None,
            _load_drafter(core, folder / DRAFTER) if model.redrafter else None,
            _load_layer(core, folder / LAYER, model.eagle3) if model.eagle3 else None,
            weights,
        )
        length, batch_invariant = int(limits["max_seq_len"]), bool(limits["batch_invariant"])
        blocks = pool_blocks(
            limits["kv_cache_tokens"], limits["max_batch_size"], limits["draft_nodes"]
        )
        options = PoolOptions(blocks, kind, bool(limits["prefix_cache"]), batch_invariant)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"{folder}: the engine cannot be loaded: {error}",
            hint="run `specpipe compile` again",
        ) from error
    return OpenVinoEngine(graphs, model, rope_inputs(model, length), length, options)


def pool_blocks(tokens: int, sequences: int, draft_nodes: int) -> int:
    """Return the blocks for `tokens` kept tokens of this number of sequences and their drafts.

    Of each sequence, one block is partly filled. In steps of batch-invariant engines it has at
    least two new rows.
    """
    return -(-(tokens + sequences * (draft_nodes + 1 + BLOCK)) // BLOCK)


def _precision(limits: dict[str, Any]) -> Precision:
    kind = limits["dtype"], limits["quantization"], limits["batch_invariant"]
    return Precision(*kind, multiplies_int8(cpu_kinds()))


def _read_network(core: ov.Core, file: Path, model: ModelConfig, kind: ov.Type) -> ov.Model:
    core.get_versions("CPU")  # loads the plugin, which knows the paged attention op
    network = core.read_model(file)
    _mark_decompression(network)
    if len(os.sched_getaffinity(0)) == 1:
        _prevent_fused_mlp(network)
    for node in network.get_ops():
        if node.get_type_name() == PAGED:
            describe_paged(node, model)
    _type_padded_caches(network, model, kind)
    return network


def _type_padded_caches(network: ov.Model, model: ModelConfig, kind: ov.Type) -> None:
    """Set type and shape of the caches of padded layers, which the plugin does not choose."""
    shape = ov.PartialShape([-1, model.num_key_value_heads, BLOCK, model.head_size])
    for node in network.get_parameters():
        targets = [port.get_node().get_type_name() for port in node.output(0).get_target_inputs()]
        if "_cache." in node.get_friendly_name() and PAGED not in targets:
            node.set_element_type(kind)
            node.set_partial_shape(shape)
    network.validate_nodes_and_infer_types()


def _load_drafter(core: ov.Core, graph: Path) -> ov.CompiledModel:
    """Compile heads or a recurrent drafter."""
    network = core.read_model(graph)
    _mark_decompression(network)
    return core.compile_model(network, "CPU", _ROUNDED)


def _load_layer(core: ov.Core, graph: Path, drafter: Eagle3Drafter) -> ov.CompiledModel:
    """Compile an EAGLE-3 drafter; its KV cache is in float32, whatever that of its target."""
    network = _read_network(core, graph, drafter.net, ov.Type.f32)
    return core.compile_model(network, "CPU", _ROUNDED | {"KV_CACHE_PRECISION": "f32"})


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
