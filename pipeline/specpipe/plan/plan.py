"""The plan of a run: engines, memory, commands, and every reason why it cannot be built."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from specpipe.config import RunConfig
from specpipe.contracts import BuildRequest, Command, ModelConfig, Rejection, Role
from specpipe.plan.gpus import GPUS

RESERVE = 0.05  # of the memory stays free


@dataclass(frozen=True)
class Memory:
    """What the deployment takes on the machine (each GPU), against what there is; in bytes."""

    needed: Mapping[Role, int]
    available: int

    @property
    def total(self) -> int:
        """Sum over the engines."""
        return sum(self.needed.values())


@dataclass(frozen=True)
class Plan:
    """Everything that `build` would do."""

    config: RunConfig
    requests: Mapping[Role, BuildRequest]
    memory: Memory | None  # None: the GPU is not known
    commands: tuple[Command, ...]
    versions: Mapping[str, str]
    rejections: tuple[Rejection, ...]  # this can never work as configured
    gaps: tuple[Rejection, ...]  # this could work, but not with this release of specpipe
    notes: tuple[str, ...] = ()  # what is worth knowing, and hinders nothing


def make_requests(
    config: RunConfig, models: Mapping[Role, ModelConfig]
) -> dict[Role, BuildRequest]:
    """Return one build request for each model of the run."""
    engine, speculation = config.engine, config.speculation
    return {
        role: BuildRequest(
            role=role,
            model=model,
            dtype=engine.dtype,
            quantization=engine.quantization,
            method=speculation.method,
            draft_nodes=speculation.num_draft_tokens,
            max_batch_size=engine.max_batch_size,
            max_input_len=engine.max_input_len,
            max_seq_len=engine.max_seq_len,
            gpu=engine.gpu,
            tp_size=engine.tp_size,
            pp_size=engine.pp_size,
            kv_cache_quantization=engine.kv_cache_quantization,
            sm=GPUS[engine.gpu].sm if engine.gpu in GPUS else None,
        )
        for role, model in models.items()
    }


def check_models(requests: Mapping[Role, BuildRequest]) -> list[Rejection]:
    """Return what is wrong with the models for the asked lengths."""
    found = []
    for role, request in requests.items():
        longest = request.model.max_position_embeddings
        if request.max_seq_len > longest:
            found.append(
                Rejection(
                    f"engine.max_seq_len is {request.max_seq_len}, but the {role} was made for "
                    f"{longest} positions",
                    f"set engine.max_seq_len to {longest} or less",
                )
            )
    return found


def check_heads(config: RunConfig, target: ModelConfig, hidden_size: int) -> list[Rejection]:
    """Return what is wrong with Medusa heads for their target and for the tree of the run."""
    found = []
    if hidden_size != target.hidden_size:
        found.append(
            Rejection(
                f"the heads read hidden states of {hidden_size} values, the target has "
                f"{target.hidden_size}",
                "use heads that were trained for this target",
            )
        )
    tree = getattr(config.speculation, "tree", "")
    deepest = max((len(path) for path in tree), default=0) if not isinstance(tree, str) else 0
    if deepest > target.num_medusa_heads:
        found.append(
            Rejection(
                f"speculation.tree is {deepest} levels deep, but there are "
                f"{target.num_medusa_heads} heads, and each guesses one level",
                f"shorten the paths to {target.num_medusa_heads}, or set tree: auto",
            )
        )
    return found


def check_memory(memory: Memory, config: RunConfig) -> list[Rejection]:
    """Say if the deployment does not fit."""
    usable = int(memory.available * (1 - RESERVE))
    if memory.total <= usable:
        return []
    where = f"each {config.engine.gpu}" if config.engine.gpu else "this machine"
    parts = ", ".join(f"{role} {size / 2**30:.1f}" for role, size in memory.needed.items())
    return [
        Rejection(
            f"the engines need {memory.total / 2**30:.1f} GiB on {where} ({parts}), "
            f"{usable / 2**30:.1f} GiB can be used",
            "lower engine.max_batch_size or engine.max_seq_len, quantise, or raise engine.tp_size",
        )
    ]


def gpu_memory(name: str) -> int | None:
    """Return the memory of a GPU in bytes; None if it is not in the table."""
    return GPUS[name].memory_bytes if name in GPUS else None


def unknown_gpu(name: str) -> Rejection:
    """Say that a GPU is not in the table, with the nearest names."""
    close = [known for known in GPUS if known.lower().startswith(name.lower())]
    close = close or difflib.get_close_matches(name, GPUS, n=1, cutoff=0.3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return Rejection(
        f"engine.gpu is {name!r}, which is not known", f"{hint}known: {', '.join(GPUS)}"
    )
