"""Splits stacked experts into one matrix each, and stacks the results again.

In a checkpoint of TensorRT-LLM the experts of a layer are one tensor [E, n, k], and so is what
belongs to each of them: `weights_scaling_factor` [E, 1] or [E, n, k / group], `zero`
[E, k / group, n]. What belongs to their common input is there once: `activation_scaling_factor`
[1], `prequant_scaling_factor` [k]. Source: upstream's layers/moe.py, and `build_stacked_experts` of
Model-Optimizer's export.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from specpipe.checkpoint.families import Shard, TensorPlan

# How one expert of a stack is cut, and how a stack of tensors is, each of which is cut so.
_EACH = {Shard.EXPERT_GATED: Shard.GATED, Shard.EXPERT_COLUMNS: Shard.COLUMNS}
_STACKED = {
    Shard.REPLICATED: Shard.EXPERTS,
    Shard.ROWS: Shard.EXPERT_ROWS,
    Shard.COLUMNS: Shard.EXPERT_COLUMNS,
    Shard.GATED: Shard.EXPERT_GATED,
    Shard.GATED_COLUMNS: Shard.EXPERT_GATED_COLUMNS,
}


def is_stack(plan: TensorPlan) -> bool:
    """Tell whether a tensor holds the matrices of all experts."""
    return plan.shard in _EACH


def quantized_module(plan: TensorPlan) -> str:
    """Return the module of upstream's that is quantised or not: experts are, as a whole."""
    module = plan.name.removesuffix(".weight")
    return module.rpartition(".")[0] if is_stack(plan) else module


def of_every_matrix(
    plan: TensorPlan, make: Callable[[TensorPlan], list[TensorPlan]]
) -> list[TensorPlan]:
    """Make the tensors of a matrix [n, k]; those of stacked matrices [E, n, k] are stacked too."""
    if not is_stack(plan):
        return make(plan)
    return [_stack(parts) for parts in zip(*map(make, _experts(plan)), strict=True)]


def _experts(plan: TensorPlan) -> list[TensorPlan]:
    each = len(plan.sources) // plan.shape[0]
    return [
        replace(
            plan, shape=plan.shape[1:], shard=_EACH[plan.shard],
            sources=plan.sources[i : i + each], source_shapes=plan.source_shapes[i : i + each],
        )
        for i in range(0, len(plan.sources), each)
    ]  # fmt: skip


def _stack(parts: Sequence[TensorPlan]) -> TensorPlan:
    first = parts[0]
    return replace(
        first, shape=(len(parts), *first.shape), shard=_STACKED[first.shard], join=None,
        slices=tuple(parts), sources=tuple(s for p in parts for s in p.sources),
        source_shapes=tuple(s for p in parts for s in p.source_shapes),
    )  # fmt: skip
