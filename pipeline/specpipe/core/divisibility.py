"""How a model is divided over ranks; whether it divides, with every reason why not."""

from collections.abc import Iterator
from dataclasses import dataclass

from specpipe.core.errors import Rejection, Unsupported
from specpipe.core.model import ModelConfig


@dataclass(frozen=True)
class Parallel:
    """How one model is spread over GPUs: every layer over `tp_size`, the layers over `pp_size`.

    Of the `tp_size` ranks, groups of `moe_ep_size` share out the experts. The embedding is on every
    rank unless `use_parallel_embedding` cuts it, along the vocabulary (0) or the hidden size (1).
    """

    tp_size: int = 1
    pp_size: int = 1
    moe_ep_size: int = 1
    use_parallel_embedding: bool = False
    embedding_sharding_dim: int = 0

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.tp_size * self.pp_size

    @property
    def moe_tp_size(self) -> int:
        """Over how many ranks each expert is spread."""
        return self.tp_size // self.moe_ep_size


ONE_RANK = Parallel()


def check_parallel(model: ModelConfig, parallel: Parallel, who: str) -> list[Rejection]:
    """Return every reason why `model` cannot be spread like this; `who` names it in the sentence.

    TensorRT-LLM's own converters drop the layers and columns that are left over.
    """
    return [
        *_check_layers(model, parallel, who),
        *_check_heads(model, parallel, who),
        *_check_widths(model, parallel, who),
        *_check_experts(model, parallel, who),
    ]


def require_divisible(model: ModelConfig, parallel: Parallel) -> None:
    """Raise Unsupported with every reason why `model` cannot be spread like this."""
    reasons = check_parallel(model, parallel, "model")
    if reasons:
        raise Unsupported("\n".join(f"convert: {reason}" for reason in reasons))


def _check_layers(model: ModelConfig, parallel: Parallel, who: str) -> Iterator[Rejection]:
    if model.redrafter and parallel.pp_size > 1:
        yield Rejection(
            "a ReDrafter reads the embedding and the last hidden state, which pipeline stages keep "
            f"apart, but engine.pp_size is {parallel.pp_size}",
            "set engine.pp_size to 1, and spread the model with engine.tp_size",
        )
    if model.num_hidden_layers % parallel.pp_size:
        yield Rejection(
            f"the {who}'s {model.num_hidden_layers} layers do not divide by engine.pp_size, "
            f"which is {parallel.pp_size}",
            f"set engine.pp_size to {_divisors(model.num_hidden_layers)}",
        )
    if model.num_eagle_layers and parallel.pp_size > 1:
        yield Rejection(
            f"EAGLE has no pipeline stages, but pp_size is {parallel.pp_size}",
            "set engine.pp_size to 1, and spread the model with engine.tp_size",
        )


def _check_heads(model: ModelConfig, parallel: Parallel, who: str) -> Iterator[Rejection]:
    heads, groups, tp = model.num_attention_heads, model.num_key_value_heads, parallel.tp_size
    if heads % tp:
        yield Rejection(
            f"the {who}'s {heads} attention heads do not divide by engine.tp_size, which is {tp}",
            f"set engine.tp_size to {_divisors(heads)}",
        )
    elif groups % tp and tp % groups:
        yield Rejection(
            f"the {who}'s {groups} key-value heads can neither be shared out nor repeated over "
            f"engine.tp_size {tp}",
            f"set engine.tp_size to a divisor or a multiple of {groups}",
        )


def _check_widths(model: ModelConfig, parallel: Parallel, who: str) -> Iterator[Rejection]:
    widths: dict[str, int] = {}
    if model.moe is None:
        widths["inner width"] = model.intermediate_size
    elif model.moe_shared_expert_intermediate_size:
        widths["shared expert's width"] = model.moe_shared_expert_intermediate_size
    if model.num_medusa_heads:
        widths["hidden size, which its Medusa heads share out,"] = model.hidden_size
    if model.redrafter:
        widths["ReDrafter's width"] = model.redrafter.exit_dim
        widths["vocabulary, which its ReDrafter does not pad,"] = model.vocab_size
        if model.redrafter.is_rnn:
            widths["hidden size, which its ReDrafter shares out,"] = model.hidden_size
    if model.eagle_net_config is not None:
        widths["hidden size, which its EAGLE drafter shares out,"] = model.hidden_size
        widths["EAGLE drafter's inner width"] = model.eagle_net_config.intermediate_size
    if parallel.use_parallel_embedding and parallel.embedding_sharding_dim == 1:
        widths["hidden size, which engine.embedding_sharding_dim 1 cuts,"] = model.hidden_size
    for name, size in widths.items():
        if size % parallel.tp_size:
            yield Rejection(
                f"the {who}'s {name} of {size} does not divide by engine.tp_size, which is "
                f"{parallel.tp_size}",
                f"set engine.tp_size to {_divisors(size)}",
            )


def _check_experts(model: ModelConfig, parallel: Parallel, who: str) -> Iterator[Rejection]:
    groups, tp = parallel.moe_ep_size, parallel.tp_size
    if model.moe is None:
        if groups > 1:
            yield Rejection(
                f"engine.moe_ep_size is {groups}, but the {who} has no experts", "remove the key"
            )
        return
    if tp % groups:
        yield Rejection(
            f"engine.moe_ep_size is {groups} and does not divide engine.tp_size, which is {tp}",
            f"set engine.moe_ep_size to {_divisors(tp)}",
        )
        return
    if model.moe.num_experts % groups:
        yield Rejection(
            f"the {who}'s {model.moe.num_experts} experts do not divide by engine.moe_ep_size, "
            f"which is {groups}",
            f"set engine.moe_ep_size to {_divisors(model.moe.num_experts)}",
        )
    if model.expert_size % (tp // groups):
        yield Rejection(
            f"the {who}'s experts of width {model.expert_size} do not divide by "
            f"{tp // groups}, which is engine.tp_size by engine.moe_ep_size",
            "raise engine.moe_ep_size, or lower engine.tp_size",
        )


def _divisors(size: int) -> str:
    found = [str(n) for n in range(1, 17) if size % n == 0]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} or {found[-1]}"
