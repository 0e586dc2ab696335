"""What TensorRT-LLM's plugins compute, apart from attention and quantized weights.

Ranks are processes that meet through torch.distributed.
"""

from typing import Any

import torch
import torch.distributed as dist

from upstream_check.enums import TORCH, DataType
from upstream_check.network import PLUGINS, Plugin

Tensor = torch.Tensor
CAPTURED: dict[str, Tensor] = {}  # what EAGLE's nets computed: no output of the network has it
_GROUPS: dict[tuple[int, ...], Any] = {}
_ACTIVATIONS = {0: "gelu", 1: "relu", 2: "silu", 3: "swiglu", 4: "geglu", 5: "identity"}
_SWIGLU = 3
_ONE_SHOT = (0, 3)  # strategies of AllReduce without a workspace
_I32 = torch.int32


def install(rank: int, ranks: int) -> None:
    """Register all plugins; with several ranks, meet them."""
    PLUGINS.update(
        {
            "Gemm": (1, _gemm),
            "AllReduce": (lambda p: 2 if _fusion(p) else 1, _allreduce),
            "AllGather": (1, _allgather),
            "Send": (1, _send),
            "Recv": (1, _receive),
            "MixtureOfExperts": (lambda p: 2 if _has_side_stream(p) else 1, _experts),
            "CudaStream": (1, lambda plugin, x, *rest: x),
            "Identity": (1, lambda plugin, x: x),
            "CumsumLastDim": (1, lambda plugin, x: torch.cumsum(x, -1).to(x.dtype)),
            "TopkLastDim": (2, _topk),
            "EagleSampleAndAcceptDraftTokens": (7, _accept),
            "EaglePrepareDrafterInputs": (11, _prepare),
            "EagleDecodeDraftTokens": (8, _decode),
        }
    )
    if ranks > 1:
        dist.init_process_group("gloo", rank=rank, world_size=ranks)
        _meet(ranks)


def _meet(ranks: int) -> None:
    """Make every group of neighbours, and every group of ranks with one distance."""
    for begin in range(ranks):
        for end in range(begin + 2, ranks + 1):
            _GROUPS[tuple(range(begin, end))] = dist.new_group(list(range(begin, end)))
    for step in range(2, ranks):
        for begin in range(step):
            members = tuple(range(begin, ranks, step))
            if len(members) > 1:
                _GROUPS[members] = dist.new_group(list(members))


def _members(plugin: Plugin) -> tuple[int, ...]:
    return tuple(int(rank) for rank in plugin.fields["group"])


def _gemm(plugin: Plugin, a: Tensor, b: Tensor) -> Tensor:
    f = plugin.fields
    a = a.T if int(f["transa"]) else a
    b = b.T if int(f["transb"]) else b
    kind = TORCH[DataType(int(f["type_id"][0]))]
    return (a.float() @ b.float() * float(f["alpha"].reshape(-1)[0])).to(kind)


def _fusion(plugin: Plugin) -> int:
    return int(plugin.fields["fusion_op"][0])


def _allreduce(plugin: Plugin, x: Tensor, *rest: Tensor) -> Any:
    f, total, others = plugin.fields, x.float().clone(), list(rest)
    if len(members := _members(plugin)) > 1:
        dist.all_reduce(total, group=_GROUPS[members])
    if not _fusion(plugin):
        return total.to(x.dtype)
    if int(f["strategy"][0]) not in _ONE_SHOT:
        others.pop(0)
    if int(f["bias"][0]):
        total = total + others.pop(0).float()
    inner = total + others.pop(0).float()
    normed = inner * torch.rsqrt((inner**2).mean(-1, keepdim=True) + float(f["eps"][0]))
    if int(f["affine"][0]):
        normed = normed * others.pop(0).float()
    return normed.to(x.dtype), inner.to(x.dtype)


def _allgather(plugin: Plugin, x: Tensor) -> Tensor:
    members = _members(plugin)
    parts = [torch.empty_like(x.contiguous()) for _ in members]
    dist.all_gather(parts, x.contiguous(), group=_GROUPS[members])
    return torch.cat(parts, 0)


def _send(plugin: Plugin, x: Tensor) -> Tensor:
    dist.send(x.contiguous(), int(plugin.fields["tgt_rank"]))
    return x


def _receive(plugin: Plugin, x: Tensor) -> Tensor:
    x = x.clone()
    dist.recv(x, int(plugin.fields["src_rank"]))
    return x


def _has_side_stream(plugin: Plugin) -> bool:
    from tensorrt_llm import functional

    return int(plugin.fields["side_stream_id"]) != int(functional.SideStreamIDType.disable)


def _experts(
    plugin: Plugin, x: Tensor, routing: Tensor, w1: Tensor, w2: Tensor, *rest: Tensor
) -> Any:
    f, scales = plugin.fields, [torch.ones(1)] * 3
    name = _ACTIVATIONS[int(f["activation_type"])]
    if int(f["activation_type"]) != _SWIGLU:
        raise NotImplementedError(f"experts with the activation {name}")
    rounds = w1.dtype == torch.float8_e4m3fn  # inputs outside, and between both layers in here
    if rounds:
        scales = [scale.float().reshape(-1) for scale in rest[:3]]
    elif int(f["quant_mode"][0]):
        w1, w2 = _widened(w1, w2, x.shape[-1], rest)
    value, index = _routed(plugin, routing)
    tokens = x.reshape(-1, x.shape[-1]).float()
    out = torch.zeros(tokens.shape[0], w2.shape[1])
    first = len(w1) * int(f["ep_rank"])
    assert len(w1) == int(f["number_of_experts"]) // int(f["ep_size"]), w1.shape
    for number in range(len(w1)):
        into, between, out_of = (scale[min(number, len(scale) - 1)] for scale in scales)
        up, gate = (tokens @ w1[number].float().T * into).chunk(2, -1)
        inner = torch.nn.functional.silu(gate) * up
        if rounds:
            inner = (inner * between).clamp(-448, 448).to(torch.float8_e4m3fn).float()
        weight = (value * (index == first + number)).sum(-1, keepdim=True)
        out += weight * (inner @ w2[number].float().T * out_of)
    kind = TORCH[DataType(int(f["output_type_id"][0]))]
    made = out.reshape(*x.shape[:-1], -1).to(kind)
    return (made, rest[-1]) if _has_side_stream(plugin) else made


def _widened(w1: Tensor, w2: Tensor, width: int, rest: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return int8 weights, which `quantized` keeps as [E, in, out], as [E, out, in] floats."""
    known = w1.dtype == torch.int8 and w1.shape[1] == width
    assert known, "experts: int8 and fp8 weights, or none quantised, are known"
    scales = [t.float() for t in rest if t.dim() == 2 and t.shape[0] == w1.shape[0]]
    first, second = (
        (w.float() * scale[:, None]).transpose(1, 2)
        for w, scale in zip((w1, w2), scales, strict=True)
    )
    return first, second


def _routed(plugin: Plugin, routing: Tensor) -> tuple[Tensor, Tensor]:
    f = plugin.fields
    shares = routing.reshape(-1, int(f["number_of_experts"])).float().softmax(-1)
    value, index = shares.topk(int(f["top_k"]), -1)
    normed = int(f["normalization_mode"]) == 1
    return (value / value.sum(-1, keepdim=True) if normed else value), index


def _topk(plugin: Plugin, x: Tensor) -> tuple[Tensor, Tensor]:
    largest = bool(int(plugin.fields["is_largest"]))
    value, index = torch.topk(x.float(), int(plugin.fields["k"]), -1, largest=largest)
    return value.to(x.dtype), index.to(_I32)


# EAGLE for the prompt of one request: the first net reads the prompt, shifted by one token. The
# nets behind it get a chain of tokens without their cache, so only names and shapes mean something.


def _accept(plugin: Plugin, logits: Tensor, drafts: Tensor, lengths: Tensor, *rest: Tensor) -> Any:
    paths = rest[4]
    accepted = torch.full((1, paths.shape[2]), -1, dtype=_I32)
    accepted[0, 0] = int(logits[-1].float().argmax())
    one, none = torch.ones(1, dtype=_I32), torch.zeros(1, dtype=_I32)
    ends = torch.zeros(paths.shape[2] + 1, dtype=_I32)
    return (accepted, one, none, torch.zeros_like(drafts), torch.zeros_like(lengths),
            paths.clone(), ends)  # fmt: skip


def _prepare(plugin: Plugin, *inputs: Tensor) -> Any:
    ids, accepted, drafts, paths = inputs[2], inputs[4], inputs[7], inputs[9]
    level, count = int(plugin.fields["layer_idx"]), ids.shape[0]
    if level == 0:
        tokens = torch.cat([ids[1:], accepted[0, :1]]).to(_I32)
        positions, whole = torch.arange(count, dtype=_I32), count
        CAPTURED["eagle0_ids"] = tokens
    else:
        tokens = drafts[0, :level].to(_I32).clone()
        positions, whole = torch.arange(count, count + level, dtype=_I32), count + level
    rows, wide = torch.arange(len(tokens), dtype=_I32), paths.shape[1]
    numbers = (torch.tensor([n], dtype=_I32) for n in (whole, count, level))
    offsets = torch.zeros(1, wide, dtype=_I32)
    mask = torch.zeros(1, wide, (wide + 31) // 32, dtype=_I32)
    last = torch.tensor([len(tokens)], dtype=_I32)
    return (*numbers, offsets, mask, tokens, positions, rows, last,
            torch.tensor(1, dtype=_I32), inputs[-3])  # fmt: skip


def _decode(plugin: Plugin, logits: Tensor, *rest: Tensor) -> Any:
    level = int(plugin.fields["layer_idx"])
    CAPTURED[f"eagle{level}"] = logits
    tokens = next(t for t in rest if t.dim() == 2 and t.dtype == _I32).clone()
    tokens[0, level] = int(logits[-1].float().argmax())
    length, zero = torch.tensor([level + 1], dtype=_I32), torch.zeros(1)
    return tokens, length, torch.zeros(1, 1, 1, dtype=_I32), zero, tokens, zero, tokens, tokens
