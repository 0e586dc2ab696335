"""Memory of an engine on each GPU: sharded, padded and quantized weights, KV cache, work buffers.

Weights and cache are counted. Work buffers are estimated from the largest step. The reserve for
libraries is a rule of thumb. Nothing here was measured on a GPU.
"""

import math
from collections.abc import Mapping

from specpipe.engine.backend import BuildRequest, Footprint
from specpipe.engine.tensorrt.lower import (
    engine_seq_len,
    num_tokens,
    step_tokens,
)
from specpipe.engine.tensorrt.profiles import DEFAULT, Profile

CONTEXT_BYTES = 2**30  # CUDA context, TensorRT and cuBLAS, by rule of thumb
COMMUNICATION_BYTES = 2**29  # NCCL and all-reduce buffers, where there are several ranks

# Bytes per quantized weight, scales included (groups of 128 for AWQ, of 16 for NVFP4).
WEIGHT_BYTES: Mapping[str, float] = {
    "none": 2.0,
    "int8": 1.0,
    "int8_sq": 1.0,
    "fp8": 1.0,
    "int4": 0.5,
    "int4_awq": 0.5 + 2 / 128,
    "nvfp4": 0.5 + 1 / 16,
}
_HALF = 2  # bytes of float16 and bfloat16


def footprint(request: BuildRequest, profile: Profile = DEFAULT) -> Footprint:
    """Return the memory of an engine on the GPU that holds most."""
    ranks = request.engine.parallel.world_size
    blocks = math.ceil(engine_seq_len(request) / profile.tokens_per_block)
    weights, looked_up = _weights(request)
    return Footprint(
        weights=weights,
        kv_per_token=_kv_per_token(request),
        kv_tokens=request.engine.max_batch_size * blocks * profile.tokens_per_block,
        activations=_activations(request, num_tokens(request, profile)),
        runtime=CONTEXT_BYTES + (COMMUNICATION_BYTES if ranks > 1 else 0),
        looked_up=looked_up,
        drafter=_drafter(request),
    )


def _drafter(request: BuildRequest) -> int:
    """Return the bytes of the layer that drafts one token."""
    if not guessing_layers(request):
        return 0
    model = request.model
    tables = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    layer = (model.num_parameters - tables) / model.num_hidden_layers
    return int(layer * WEIGHT_BYTES[request.engine.quantization] / request.engine.parallel.tp_size)


def _weights(request: BuildRequest) -> tuple[int, int]:
    """Return the weight bytes of the largest rank, and the bytes that a step reads only rows of.

    Embedding and head stay in 16 bits, and the head's rows are padded. Every rank of the first
    stage holds the whole embedding unless it is sharded. A tied head is stored again if it is
    sharded.
    """
    engine = request.engine
    model, tp, pp = request.model, engine.parallel.tp_size, engine.parallel.pp_size
    table = model.vocab_size * model.hidden_size
    tables = table if model.tie_word_embeddings else 2 * table
    inner = (model.num_parameters - tables) * WEIGHT_BYTES[engine.quantization]
    if model.stored_bytes:
        inner = max(0, model.stored_bytes - tables * _HALF)
    inner *= 1 + guessing_layers(request) / model.num_hidden_layers
    layers = (inner + _duplicated(request)) / (tp * pp)
    head = padded(model.vocab_size, tp) // tp * model.hidden_size * _HALF
    first = table * _HALF // (tp if engine.parallel.use_parallel_embedding else 1)
    last = head + model.drafter_parameters(padded(model.vocab_size, tp)) * _HALF // tp
    picked = model.num_eagle_layers * first  # every copy of a drafter has its own embedding
    if pp > 1:  # every stage is as full as the fullest; a step reads the last one's head once
        return int(layers + max(first, last)), max(first, last) - last // pp
    if model.tie_word_embeddings and tp == 1:
        return int(layers + last + picked), picked
    return int(layers + first + last + picked), first + picked


def guessing_layers(request: BuildRequest) -> int:
    """Return the number of drafting layers, each as large as a layer of the target."""
    return {"eagle3": 1, "mtp": request.draft_nodes}.get(request.method, 0)


def _duplicated(request: BuildRequest) -> float:
    """Return the additional bytes of KV heads that are copied because there are more ranks."""
    model = request.model
    extra = max(0, request.engine.parallel.tp_size - model.num_key_value_heads)
    rows = 2 * extra * model.head_size * model.num_hidden_layers
    return rows * model.hidden_size * WEIGHT_BYTES[request.engine.quantization]


def _kv_per_token(request: BuildRequest) -> int:
    model, tp = request.model, request.engine.parallel.tp_size
    size = _HALF if request.engine.kv_cache_quantization == "none" else 1
    share = max(model.num_key_value_heads / tp, 1) / model.num_key_value_heads
    net = model.eagle_net_config
    more = guessing_layers(request) + (net.num_hidden_layers if net else 0)
    layers = 1 + more / model.num_hidden_layers
    return math.ceil(
        model.kv_bytes(1, bytes_per_value=size) * share * layers / request.engine.parallel.pp_size
    )


def _activations(request: BuildRequest, tokens: int) -> int:
    """Return an upper estimate of the work buffers of a step of `tokens` tokens.

    Residual, normed and attended states; queries, keys and values; both halves of the MLP; and the
    logits of every row that decodes, in 32 bits, before and after they are gathered.
    """
    model, tp = request.model, request.engine.parallel.tp_size
    attention = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_size
    inner = model.moe.top_k * model.expert_size if model.moe else model.intermediate_size
    inner += model.moe_shared_expert_intermediate_size
    row = 4 * model.hidden_size + (attention + 2 * inner) / tp
    logits = step_tokens(request) * padded(model.vocab_size, tp) * 4
    heads = 1 + model.num_medusa_heads + bool(model.num_eagle_layers)  # its levels take turns
    own = int(logits * heads * (1 + 1 / tp))
    return int(tokens * row * _HALF) + own + _beams(request)


def _beams(request: BuildRequest) -> int:
    """Return the bytes of a ReDrafter's and the target's logits for every token of every beam.

    Each rank holds four copies, whole and in 16 bits: the drafts of the last step, the target's
    logits for them before and after the best token was picked, and the next drafts
    (redrafter_helper.py).
    """
    net = request.model.redrafter
    if net is None:
        return 0
    rows = request.engine.max_batch_size * net.num_beams * (net.draft_len_per_beam + 1)
    return 4 * rows * request.model.vocab_size * _HALF


def padded(size: int, ranks: int) -> int:
    """Return the next multiple of `ranks`, to which a vocabulary is padded."""
    return math.ceil(size / ranks) * ranks
