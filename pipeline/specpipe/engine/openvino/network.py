"""The graph of a decoder, built op by op from a TensorRT-LLM checkpoint; no torch.

The graph has no state, so rejected draft tokens never have to be rolled back. The KV cache is a
plain input: a prefix of the host's buffers, which is not copied. A mask defines the tokens that
every new token attends to; chains, trees and sliding windows differ only in the mask. The graph
returns the KV rows of the new tokens, and the host copies the accepted rows into its buffers.

Shapes: M new tokens, P cached rows, R rows with requested logits, H heads in K groups of
G = H / K, head size h, L layers.

    tokens     [M] int32           rows       [R] int32, indices into the new tokens
    query_cos, query_sin  [1, M, 1, h], scaled by 1 / sqrt(h), the scale of the softmax
    key_cos, key_sin      [1, M, 1, h]
    mask       [1, 1, M * G, P + M], 0 or a large negative number
    mask.W     the same for layers with a window of W tokens; with ALiBi [1, K, M * G, P + M]
    positions  [M] int32, only for models with learned absolute positions
    key.i      [1, P, K * h]       value.i    [1, P, K * h]
 -> logits     [R, V]              hidden     [R, D], after the final norm
    kv         [2 * L, M, K * h]   new keys and values: layer 0's keys, its values, layer 1's ...

OpenVINO's CPU plugin recognizes fast paths by pattern: the exact ops below decide which of them are
fused. docs/performance.md has the measurements; scripts/bench-engine repeats them.
"""

import openvino as ov
from openvino import Type
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo

from specpipe.engine.openvino.attention import Position, attention, window
from specpipe.engine.openvino.mlp import mlp
from specpipe.engine.openvino.ops import Builder, integer, ints, scalar, softcap
from specpipe.engine.openvino.weights import Weights, int8, plain
from specpipe.model import ModelConfig

ROTARY = ("query_cos", "query_sin", "key_cos", "key_sin")


def build_network(
    model: ModelConfig, weights: Weights, quantization: str, cache_type: ov.Type
) -> ov.Model:
    """Return the graph of the checkpoint. Equal inputs give equal graphs, names included."""
    build = Builder(model, weights, quantization, cache_type)
    inputs = _inputs(model)
    position = Position(
        tuple(inputs[name] for name in ROTARY if name in inputs),
        {w: inputs[mask_name(w)] for w in windows(model)},
    )
    table = _table(build, "vocab_embedding")
    x = _embed(build, table, inputs)  # [1, M, D]
    caches, new_rows = [], []
    for i in range(model.num_hidden_layers):
        cache = [_cache_input(build, f"{kind}.{i}") for kind in ("key", "value")]
        x, fresh = _layer(build, i, x, cache, position)
        caches += cache
        new_rows += fresh
    picked = op.gather(op.squeeze(x, ints(0)), inputs["rows"], integer(0))  # [R, D]
    hidden = build.norm(op.unsqueeze(picked, ints(0)), "transformer.ln_f")
    outputs = {
        "logits": op.squeeze(_logits(build, hidden, table), ints(0)),
        "hidden": op.squeeze(hidden, ints(0)),
        "kv": op.convert(op.concat(new_rows, 0), cache_type),
    }
    return _model(outputs, [*inputs.values(), *caches])


def columns(model: ModelConfig) -> tuple[int, ...]:
    """Return the input widths of all layers that are quantized."""
    inner = model.num_experts * model.expert_size or model.intermediate_size
    shared = model.moe_shared_expert_intermediate_size
    attended = model.num_attention_heads * model.head_size
    return (model.hidden_size, inner, attended, *((shared,) if shared else ()))


def windows(model: ModelConfig) -> list[int]:
    """Return the distinct sliding windows of the layers; 0 stands for full attention."""
    return sorted({window(model, i) for i in range(model.num_hidden_layers)})


def mask_name(sliding_window: int) -> str:
    """Return the name of the mask input of layers with this window."""
    return f"mask.{sliding_window}" if sliding_window else "mask"


def _inputs(model: ModelConfig) -> dict[str, ov.Node]:
    """Return the inputs by name and in order, without the caches."""
    found = {name: op.parameter([-1], Type.i32, name=name) for name in ("tokens", "rows")}
    if model.rotary_dim:
        shape = [1, -1, 1, model.head_size]
        found |= {name: op.parameter(shape, Type.f32, name=name) for name in ROTARY}
    if model.position_embedding_type == "learned_absolute":
        found["positions"] = op.parameter([-1], Type.i32, name="positions")
    heads = -1 if model.position_embedding_type == "alibi_with_scale" else 1
    for name in map(mask_name, windows(model)):
        found[name] = op.parameter([1, heads, -1, -1], Type.f32, name=name)
    return found


def _cache_input(build: Builder, name: str) -> ov.Node:
    width = build.model.num_key_value_heads * build.model.head_size
    return op.parameter([1, -1, width], build.cache_type, name=name)


def _table(build: Builder, name: str) -> ov.Node:
    return plain(*build.weights.raw(f"transformer.{name}.weight"))


def _embed(build: Builder, table: ov.Node, inputs: dict[str, ov.Node]) -> ov.Node:
    """Return [1, M, D]: the embeddings of the new tokens, and of their positions."""
    x = op.unsqueeze(op.gather(table, inputs["tokens"], integer(0)), ints(0))
    scale = build.model.arithmetic.embedding_scale
    if scale != 1:
        x = op.multiply(x, scalar(scale, (1, 1, 1)))
    if "positions" not in inputs:
        return x
    rows = op.gather(_table(build, "position_embedding"), inputs["positions"], integer(0))
    return op.add(x, op.unsqueeze(rows, ints(0)))


def _logits(build: Builder, hidden: ov.Node, table: ov.Node) -> ov.Node:
    logits = op.matmul(hidden, _head(build, table), False, True)
    if build.model.arithmetic.head_bias:
        logits = build.add_bias(logits, "lm_head.bias")
    return softcap(logits, build.model.final_logit_softcapping)


def _head(build: Builder, table: ov.Node) -> ov.Node:
    """Return the output weights; a tied head shares the embedding's constant."""
    tied = build.model.tie_word_embeddings
    if build.quantization == "none":
        return table if tied else plain(*build.weights.raw("lm_head.weight"))
    # int4 is not precise enough for the output layer, which is always int8.
    return int8(build.weights.float32("lm_head.weight"))


def _layer(
    build: Builder, i: int, x: ov.Node, cache: list[ov.Node], position: Position
) -> tuple[ov.Node, list[ov.Node]]:
    how, at = build.model.arithmetic, f"transformer.layers.{i}."
    normed = build.norm(x, f"{at}input_layernorm")
    attended, fresh = attention(build, i, normed, cache, position)
    if how.post_norms:
        attended = build.norm(attended, f"{at}post_layernorm")
    if how.residual == "sequential":
        x = op.add(x, attended)
        normed = build.norm(x, f"{at}{how.mlp_norm}")
    elif how.residual == "parallel":
        normed = build.norm(x, f"{at}{how.mlp_norm}")
    out = mlp(build, f"{at}mlp.", normed)
    if how.post_norms:
        out = build.norm(out, f"{at}post_feedforward_layernorm")
    if how.residual != "sequential":
        out = op.add(out, attended)
    return op.add(x, out), fresh


def _model(outputs: dict[str, ov.Node], inputs: list[ov.Node]) -> ov.Model:
    results = []
    for name, node in outputs.items():
        node.output(0).get_tensor().set_names({name})
        results.append(op.result(node))
    for node in inputs:
        node.output(0).get_tensor().set_names({node.get_friendly_name()})
    model = ov.Model(results, [_language_model_mark()], inputs, "specpipe")
    name_by_order(model)
    return model


def name_by_order(model: ov.Model) -> None:
    """Name every op by its place in the graph; default names depend on earlier graphs."""
    for i, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() != "Parameter":
            node.set_friendly_name(f"{node.get_type_name()}.{i}")


def _language_model_mark() -> ov.Node:
    """Return a sink that makes the CPU plugin treat the graph as a language model.

    The plugin looks for an attention op and a state. Only if it finds them does it multiply float32
    activations with 16-bit weights directly, instead of widening the weights at load time (16 ms
    instead of 25 ms per step for SmolLM2-135M). This mark is one number that attends to itself; it
    has no effect on the outputs.
    """
    info = VariableInfo()
    info.data_shape, info.data_type, info.variable_id = (
        ov.PartialShape([1, 1, 1, 1]),
        Type.f32,
        "mark",
    )
    Variable(info)
    zero = scalar(0, (1, 1, 1, 1))
    state = op.read_value(zero, "mark", Type.f32, ov.PartialShape([1, 1, 1, 1]))
    attended = op.scaled_dot_product_attention(state, state, state, zero, scalar(1, ()))
    return op.assign(attended, "mark")
