"""Where a training computes: its device, its mixed precision, and the processes that share it."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch

from specpipe.config.training import TrainOptions
from specpipe.core.errors import Unsupported

T = TypeVar("T")
_CPU = torch.device("cpu")

WAIT = timedelta(days=7)  # the other processes wait while the first one generates answers
_WORLD = "WORLD_SIZE"  # torchrun and `accelerate launch` set it


@dataclass(frozen=True)
class TrainingPlace:
    """The device of one process, and its place among the processes of a training."""

    device: torch.device = _CPU
    autocast: bool = False  # compute losses in bfloat16 where torch's autocast does
    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports; one in each training."""
        return self.rank == 0

    @property
    def numerics(self) -> str:
        """What the result depends on beyond rounding; empty for float32 on a CPU."""
        mixed = " bfloat16" if self.autocast else ""
        return f"{self.device.type}{mixed}" if mixed or self.device.type != "cpu" else ""

    def mixed(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context that losses are computed in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's share of the items."""
        return items[self.rank :: self.world]

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors, in place, by their sums over all processes."""
        if self.world > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def wait(self) -> None:
        """Return once every process of the training is here."""
        if self.world > 1:
            torch.distributed.barrier()


HERE = TrainingPlace()  # one process on the CPU


def place(options: TrainOptions) -> TrainingPlace:
    """Return where to train: as `train.device` and the launcher of the process specify.

    Raises Unsupported if that device is not there.
    """
    if int(os.environ.get(_WORLD, "1")) > 1:
        return _join(options)
    device = torch.device(_default() if options.device == "auto" else options.device)
    _require(device, options.device)
    return TrainingPlace(device, _is_mixed(options, device))


def _default() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _require(device: torch.device, asked: str) -> None:
    if device.type != "cuda":
        return
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise Unsupported(
            f"'train.device' is {asked}, but torch finds {count} CUDA devices",
            hint="use train.device: cpu, or install a build of torch for CUDA and its driver",
        )


def _is_mixed(options: TrainOptions, device: torch.device) -> bool:
    chosen = options.autocast
    return device.type == "cuda" if chosen == "auto" else chosen == "bfloat16"


def _join(options: TrainOptions) -> TrainingPlace:
    """Join the other processes of `torchrun` or `accelerate launch`; needs accelerate."""
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise Unsupported(
            "training with several processes needs accelerate",
            hint="install the extra `train` of specpipe, or start one process",
        ) from error
    on_cpu = options.device == "cpu" or (options.device == "auto" and _default() == "cpu")
    state = PartialState(cpu=on_cpu, timeout=WAIT)
    device = torch.device(state.device)
    _require(device, options.device)
    return TrainingPlace(
        device, _is_mixed(options, device), int(state.process_index), int(state.num_processes)
    )


def target_place(
    options: TrainOptions, placement: TrainingPlace
) -> torch.device | Literal["spread"]:
    """Return where the frozen target goes: to the device of the training, or over all devices.

    Raises Unsupported for a target that several processes would spread.
    """
    if not options.spread_target:
        return placement.device
    if placement.world > 1:
        raise Unsupported(
            "'train.spread_target' is for one process: each would spread the target over all GPUs",
            hint="start one process, or remove the key",
        )
    return "spread"


@contextlib.contextmanager
def determinism(device: torch.device) -> Iterator[None]:
    """Make torch choose deterministic operations in a `with` block.

    On the CPU, an operation whose result could differ between runs is refused. On a GPU, where some
    have no deterministic form, torch warns of it.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    settings = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    settings.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]


def cuts(sizes: Sequence[int], most: int, least_parts: int = 1) -> list[slice]:
    """Cut a batch of items into neighbouring parts of at most `most` positions in all.

    The items of a part are padded to its longest, and padding counts. An item is never divided.
    0: no limit. At least `least_parts`, if the items suffice.
    """
    share = -(-sum(sizes) // least_parts)
    found, begin, held, longest = list[slice](), 0, 0, 0
    for i, size in enumerate(sizes):
        padded = (i - begin + 1) * max(longest, size)
        if i > begin and (held + size > share or 0 < most < padded):
            found.append(slice(begin, i))
            begin, held, longest = i, 0, 0
        held, longest = held + size, max(longest, size)
    return [*found, slice(begin, len(sizes))]
