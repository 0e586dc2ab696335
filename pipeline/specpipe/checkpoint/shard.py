"""The part of every tensor that each rank holds, in upstream's order of ranks; touches no tensor.

Rank `r` is tensor-parallel rank `r % tp` of pipeline stage `r // tp`. Among the tensor-parallel
ranks, neighbours hold different experts and those `moe_ep` apart different parts of the same ones
(tensorrt_llm/mapping.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

from specpipe.checkpoint.families import Shard, TensorPlan
from specpipe.core.divisibility import Parallel
from specpipe.core.model import ModelConfig

Range = tuple[int, int]  # [begin, end)


@dataclass(frozen=True)
class Cut:
    """The part of a tensor that one rank holds: some ranges of each dimension, in rising order.

    A range of dimension 0 that lies beyond the tensor's end is padding: zeros.
    """

    ranges: tuple[tuple[Range, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the part."""
        return tuple(sum(end - begin for begin, end in dim) for dim in self.ranges)

    def flat(self, shape: tuple[int, ...]) -> "Cut":
        """Return the same part of the tensor of `shape` with its first two dimensions as one."""
        size = shape[1]
        rows = (
            (i * size + begin, i * size + end)
            for first, last in self.ranges[0]
            for i in range(first, last)
            for begin, end in self.ranges[1]
        )
        return Cut((tuple(rows), *self.ranges[2:]))


def rank_file(index: int) -> str:
    """Return the name of the file with a rank's tensors."""
    return f"rank{index}.safetensors"


@dataclass(frozen=True)
class Rank:
    """One GPU's place."""

    parallel: Parallel
    index: int

    @property
    def file(self) -> str:
        """Name of the file with this rank's tensors."""
        return rank_file(self.index)

    @property
    def tp(self) -> int:
        """Place among the ranks that share every layer of a stage."""
        return self.index % self.parallel.tp_size

    @property
    def stage(self) -> int:
        """Place among the pipeline stages."""
        return self.index // self.parallel.tp_size

    @property
    def expert_group(self) -> int:
        """Which share of the experts this rank holds."""
        return self.tp % self.parallel.moe_ep_size

    @property
    def expert_part(self) -> int:
        """Which part of each of its experts this rank holds."""
        return self.tp // self.parallel.moe_ep_size


def ranks(parallel: Parallel) -> list[Rank]:
    """Return every rank of a deployment, in order."""
    return [Rank(parallel, index) for index in range(parallel.world_size)]


def local_name(plan: TensorPlan, rank: Rank, model: ModelConfig) -> str | None:
    """Return a tensor's name in a rank's file, where layers count from 0; None if not there."""
    stages = rank.parallel.pp_size
    if plan.layer is None:
        at = {"first": rank.stage == 0, "last": rank.stage == stages - 1, "every": True}
        return plan.name if at[plan.stage] else None
    layers = model.num_hidden_layers // stages
    local = plan.layer - rank.stage * layers
    if not 0 <= local < layers:
        return None
    return plan.name.replace(f".layers.{plan.layer}.", f".layers.{local}.", 1)


def cut(plan: TensorPlan, rank: Rank, model: ModelConfig) -> Cut:
    """Return the part of a planned tensor that a rank holds, if it holds any of it.

    `check_parallel` must have found nothing: what does not divide is not looked at here.
    """
    return _CUTS[plan.shard](plan.shape, rank, model)


def whole(shape: tuple[int, ...]) -> Cut:
    """Return the cut that leaves a tensor as it is."""
    return Cut(tuple(((0, size),) for size in shape))


def _share(size: int, count: int, index: int) -> Range:
    step = size // count
    return index * step, (index + 1) * step


def _along(shape: tuple[int, ...], dim: int, *ranges: Range) -> Cut:
    """Return the cut that takes these ranges of one dimension, and all of the others."""
    parts = list(whole(shape).ranges)
    parts[dim] = ranges
    return Cut(tuple(parts))


def _replicated(shape: tuple[int, ...], rank: Rank, model: ModelConfig) -> Cut:
    return whole(shape)


def _rows(shape: tuple[int, ...], rank: Rank, model: ModelConfig) -> Cut:
    return _along(shape, 0, _share(shape[0], rank.parallel.tp_size, rank.tp))


def _columns(shape: tuple[int, ...], rank: Rank, model: ModelConfig) -> Cut:
    return _along(shape, 1, _share(shape[1], rank.parallel.tp_size, rank.tp))


def _qkv(shape: tuple[int, ...], rank: Rank, model: ModelConfig) -> Cut:
    return _along(shape, 0, *_head_ranges(shape[0], rank, model))


def _qkv_columns(shape: tuple[int, ...], rank: Rank, model: ModelConfig) -> Cut:
    return _along(shape, 1, *_head_ranges(shape[1], rank, model))


def _head_ranges(size: int, rank: Rank, model: ModelConfig) -> list[Range]:
    """Share out the heads of a dimension that holds all of them, in packed values or in plain."""
    heads, groups, tp = model.num_attention_heads, model.num_key_value_heads, rank.parallel.tp_size
    first, count = _key_heads(rank, model)
    width = size // (heads + 2 * groups)
    begin, end = _share(heads, tp, rank.tp)
    taken = [(begin, end), *((at + first, at + first + count) for at in (heads, heads + groups))]
    return [(begin * width, end * width) for begin, end in taken]


def _keys(shape: tuple[int, ...], rank: Rank, model: ModelConfig) -> Cut:
    first, count = _key_heads(rank, model)
    return _along(shape, 0, (first, first + count))


def _key_heads(rank: Rank, model: ModelConfig) -> tuple[int, int]:
    """Return the first KV head of a rank and their number; few are held by several neighbours."""
    groups, tp = model.num_key_value_heads, rank.parallel.tp_size
    return rank.tp * groups // tp, max(groups // tp, 1)


def _gated(shape: tuple[int, ...], rank: Rank, model: ModelConfig) -> Cut:
    return _along(shape, 0, *_halves(shape[0], rank.parallel.tp_size, rank.tp))


def _halves(size: int, count: int, index: int) -> tuple[Range, Range]:
    half = size // 2
    begin, end = _share(half, count, index)
    return (begin, end), (half + begin, half + end)


def _head(shape: tuple[int, ...], rank: Rank, model: ModelConfig) -> Cut:
    tp = rank.parallel.tp_size
    return _along(shape, 0, _share(-(-shape[0] // tp) * tp, tp, rank.tp))


def _embedding(shape: tuple[int, ...], rank: Rank, model: ModelConfig) -> Cut:
    if not rank.parallel.use_parallel_embedding:
        return whole(shape)
    by_hidden = rank.parallel.embedding_sharding_dim == 1
    return (_columns if by_hidden else _head)(shape, rank, model)


def _gated_columns(shape: tuple[int, ...], rank: Rank, model: ModelConfig) -> Cut:
    return _along(shape, 1, *_halves(shape[1], rank.parallel.tp_size, rank.tp))


def _sharing(rank: Rank) -> Rank:
    """Return a rank's place among those that share each of its experts."""
    return Rank(Parallel(rank.parallel.moe_tp_size), rank.expert_part)


def _of_experts(each: "Cutter") -> "Cutter":
    """Share out the experts, and cut each of them among the ranks that hold it."""

    def cut(shape: tuple[int, ...], rank: Rank, model: ModelConfig) -> Cut:
        experts = _share(shape[0], rank.parallel.moe_ep_size, rank.expert_group)
        return Cut(((experts,), *each(shape[1:], _sharing(rank), model).ranges))

    return cut


def _expert_inputs(shape: tuple[int, ...], rank: Rank, model: ModelConfig) -> Cut:
    return _rows(shape, _sharing(rank), model)


Cutter = Callable[[tuple[int, ...], Rank, ModelConfig], Cut]
_CUTS: dict[Shard, Cutter] = {
    Shard.REPLICATED: _replicated,
    Shard.ROWS: _rows,
    Shard.COLUMNS: _columns,
    Shard.QKV: _qkv,
    Shard.KEYS: _keys,
    Shard.QKV_COLUMNS: _qkv_columns,
    Shard.GATED: _gated,
    Shard.HEAD: _head,
    Shard.EMBEDDING: _embedding,
    Shard.GATED_COLUMNS: _gated_columns,
    Shard.EXPERTS: _of_experts(_replicated),
    Shard.EXPERT_ROWS: _of_experts(_rows),
    Shard.EXPERT_COLUMNS: _of_experts(_columns),
    Shard.EXPERT_GATED: _of_experts(_gated),
    Shard.EXPERT_GATED_COLUMNS: _of_experts(_gated_columns),
    Shard.EXPERT_INPUTS: _expert_inputs,
}
