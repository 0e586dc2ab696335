"""Compares what a training needs with what there is, and finds changes with which it fits."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from specpipe.config.training import DrafterTraining, MedusaTraining, TrainOptions
from specpipe.core.errors import Rejection
from specpipe.core.model import ModelConfig
from specpipe.plan.memory import RESERVE
from specpipe.train.forecast.amounts import Amounts
from specpipe.train.forecast.kinds import Work, work_of
from specpipe.train.forecast.needs import TrainingNeeds, needs_of

GIB = 2**30
_LEAST_ROWS, _LEAST_LENGTH, _LORA_RANK, _FREQUENT = 16, 128, 16, 4096


@dataclass(frozen=True)
class Room:
    """The memory and the disk that a training may use; None: not known, so not compared."""

    ram: int | None
    disk: int | None  # free, or taken by states that a training would use again
    gpu: int | None = None
    gpu_name: str | None = None  # None: it computes on the CPU

    @property
    def device(self) -> tuple[int | None, str]:
        """Return the memory that a training computes in, and its name."""
        return (self.gpu, self.gpu_name) if self.gpu_name else (self.ram, "this machine")


@dataclass(frozen=True)
class Sized:
    """A training whose options may be varied."""

    kind: str
    train: TrainOptions
    model: ModelConfig
    amounts: Amounts
    room: Room

    @property
    def work(self) -> Work:
        """Its facts."""
        return work_of(self.kind, self.train, self.model)

    @property
    def needs(self) -> TrainingNeeds:
        """What it needs."""
        on_gpu = self.room.gpu_name is not None
        return needs_of(self.train, self.work, self.model, self.amounts, on_gpu=on_gpu)

    def fits_memory(self, train: TrainOptions) -> bool:
        """Whether other options fit into the memory of the device."""
        available, _ = self.room.device
        return available is None or replace(self, train=train).needs.device_bytes <= usable(
            available
        )


def usable(memory: int) -> int:
    """Return the memory that a training may fill."""
    return int(memory * (1 - RESERVE))


def rejections(sized: Sized) -> list[Rejection]:
    """Return every reason why a training cannot run, each with what to change."""
    return [*_memory(sized), *_ram(sized), *_disk(sized)]


def _memory(sized: Sized) -> Iterator[Rejection]:
    available, name = sized.room.device
    if available is None or sized.fits_memory(sized.train):
        return
    needs = sized.needs
    ways = list(_ways(sized))
    yield Rejection(
        f"the training needs {needs.device_bytes / GIB:.1f} GiB of memory, most of it for "
        f"{_largest(needs)}; {name} has {available / GIB:.1f} GiB, of which "
        f"{usable(available) / GIB:.1f} GiB may be used",
        f"set {' or '.join(ways)}" if ways else f"use a smaller target, or {_more(sized)}",
    )


def _largest(needs: TrainingNeeds) -> str:
    parts = {**needs.weights, needs.largest_phase: needs.phases[needs.largest_phase]}
    return max(parts, key=lambda name: parts[name])


def _more(sized: Sized) -> str:
    least = replace(sized, train=_together(sized)[1]).needs.device_bytes
    what = "a GPU" if sized.room.gpu_name else "a machine"
    return f"{what} with {math.ceil(least / GIB / (1 - RESERVE))} GiB or more"


def _ram(sized: Sized) -> Iterator[Rejection]:
    room, needs = sized.room, sized.needs
    if room.gpu_name and room.ram is not None and needs.host_bytes > usable(room.ram):
        yield Rejection(
            f"loading the target needs {needs.host_bytes / GIB:.1f} GiB of RAM, of which this "
            f"machine has {room.ram / GIB:.1f} GiB",
            "use a smaller target, or a machine with more RAM",
        )


def _disk(sized: Sized) -> Iterator[Rejection]:
    room, needs = sized.room, sized.needs
    if room.disk is None or needs.disk_bytes <= room.disk:
        return
    states = needs.disk["hidden states"]
    share = max(0.0, (room.disk - (needs.disk_bytes - states)) / max(1, states))
    name, size = max(needs.disk.items(), key=lambda part: part[1])
    yield Rejection(
        f"the training writes {needs.disk_bytes / GIB:.1f} GiB, of which {size / GIB:.1f} GiB are "
        f"{name}; {room.disk / GIB:.1f} GiB are free",
        " or ".join(_less_disk(sized, share)) or "free some space, or set train.out",
    )


def _less_disk(sized: Sized, share: float) -> Iterator[str]:
    train, how = sized.train, sized.train.self_distillation
    streamed = replace(train, hidden_states="on_the_fly")
    other = replace(sized, train=streamed).needs
    if other.disk_bytes <= (sized.room.disk or 0) and other != sized.needs:
        yield "set train.hidden_states: on_the_fly"
    if share <= 0 or not sized.needs.disk["hidden states"]:
        return
    if how and how.invented_prompts and how.invented_prompts == sized.amounts.prompts:
        most = int(share * how.invented_prompts)
        yield f"set train.self_distillation.invented_prompts: {most}"
    else:
        yield f"give at most {int(share * sized.amounts.positions):,} positions of text"


Way = Mapping[str, TrainOptions]  # by what to write, the mildest change first


def _ways(sized: Sized) -> Iterator[str]:
    """Yield the mildest change of each kind with which the memory is enough; else some together."""
    ways = [name for kind in _changes(sized) if (name := _first_that_fits(sized, kind))]
    yield from (f"train.{name}" for name in ways)
    together, last = _together(sized)
    if not ways and sized.fits_memory(last):
        yield " with ".join(f"train.{name}" for name in together)


def _first_that_fits(sized: Sized, kind: Way) -> str | None:
    return next((name for name, train in kind.items() if sized.fits_memory(train)), None)


def _together(sized: Sized) -> tuple[list[str], TrainOptions]:
    """Make the change that saves most, and the next one, until the memory is enough."""
    chosen, train = list[str](), sized.train
    while not sized.fits_memory(train):
        now = replace(sized, train=train)
        kinds = [kind for kind in _changes(now) if _least(now, kind) < now.needs.device_bytes]
        if not kinds:
            break
        best = min(kinds, key=lambda kind: _least(now, kind))
        name = _first_that_fits(sized, best) or list(best)[-1]
        chosen, train = [*chosen, name], best[name]
    return chosen, train


def _least(sized: Sized, kind: Way) -> int:
    """Return what a training needs after the strongest change of a kind."""
    return replace(sized, train=list(kind.values())[-1]).needs.device_bytes


def _changes(sized: Sized) -> Iterator[Way]:
    """Yield options that need less memory, one mapping for every kind of change."""
    train, work = sized.train, sized.work
    kinds: list[Way] = [] if work.every_row else [_batches(train, work)]
    kinds += [_options(sized), _lengths(train)]
    if work.layers and not work.every_row and not train.gradient_checkpointing:
        kinds.append({"gradient_checkpointing: true": replace(train, gradient_checkpointing=True)})
    if train.dtype == "float32":
        kinds.append({"dtype: bfloat16": replace(train, dtype="bfloat16")})
    kinds.append(_answers(train))
    yield from (kind for kind in kinds if kind)


def _batches(train: TrainOptions, work: Work) -> Way:
    first = min(train.micro_batch or work.schedule.batch_tokens, work.schedule.batch_tokens)
    change = lambda n: replace(train, micro_batch=n)  # noqa: E731
    return _halved(first, _LEAST_ROWS, "micro_batch", change)


def _lengths(train: TrainOptions) -> Way:
    change = lambda n: replace(train, sequence_length=n)  # noqa: E731
    return _halved(train.sequence_length, _LEAST_LENGTH, "sequence_length", change)


def _answers(train: TrainOptions) -> Way:
    how = train.self_distillation
    if how is None:
        return {}
    change = lambda n: replace(train, self_distillation=replace(how, batch_size=n))  # noqa: E731
    return _halved(how.batch_size, 1, "self_distillation.batch_size", change)


def _options(sized: Sized) -> Way:
    """Return changes of the drafter's own options: fewer logits, and a low-rank update."""
    train, key, found = sized.train, sized.kind, dict[str, TrainOptions]()
    options = getattr(train, key)
    if isinstance(options, DrafterTraining) and not options.loss_vocabulary:
        fewer = replace(options, loss_vocabulary=_FREQUENT)
        found[f"{key}.loss_vocabulary: {_FREQUENT}"] = replace(train, **{key: fewer})  # type: ignore[arg-type]
    if isinstance(options, MedusaTraining) and options.stage == "medusa2" and not options.lora_rank:
        lighter = replace(options, lora_rank=_LORA_RANK)
        found[f"{key}.lora_rank: {_LORA_RANK}"] = replace(train, medusa=lighter)
    return found


def _halved(
    first: int, least: int, key: str, change: Callable[[int], TrainOptions]
) -> dict[str, TrainOptions]:
    found, size = dict[str, TrainOptions](), first // 2
    while size >= least:
        found[f"{key}: {size}"] = change(size)
        size //= 2
    return found
