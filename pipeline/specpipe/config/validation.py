"""The section `validate`: prompts, scenarios, gates."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from specpipe.config.keys import at_least, items_formerly
from specpipe.config.metrics import FORMER_NAMES


@dataclass(frozen=True)
class Slo:
    """The times within which a request counts as good."""

    ttft_ms: float = field(default=2000, metadata=at_least(0))
    """Most milliseconds to the first response of a request that counts for `goodput`."""
    tpot_ms: float = field(default=200, metadata=at_least(0))
    """Most milliseconds per output token after the first response."""


@dataclass(frozen=True)
class ConcurrencyOptions:
    """The loads of the scenario `concurrency`."""

    clients: tuple[int, ...] = field(default=(1, 2, 4, 8), metadata=at_least(1))
    """Numbers of clients that each send one request at a time."""
    rates: tuple[float, ...] = field(default=(), metadata=at_least(0.001))
    """Requests per second that arrive at random times, whether earlier ones have ended or not."""
    requests: int = field(default=16, metadata=at_least(1))
    """Requests of every load and arm; at least two for each client are sent."""
    max_tokens: int = field(default=48, metadata=at_least(2))
    """Maximum number of output tokens per answer."""


@dataclass(frozen=True)
class SampledOptions:
    """The requests of the scenario `sampled`."""

    seeds: int = field(default=100, metadata=at_least(8))
    """Seeds with which every prompt is sent, through every arm."""
    num_prompts: int = field(default=4, metadata=at_least(1))
    """Number of prompts."""
    max_tokens: int = field(default=6, metadata=at_least(2))
    """Tokens of an answer; those after the first can come from draft tokens."""
    temperature: float = field(default=1.0, metadata=at_least(0.05))
    """Temperature of the requests."""


@dataclass(frozen=True)
class LongOptions:
    """The requests of the scenario `long`."""

    input_tokens: tuple[int, ...] = field(default=(2048, 4096), metadata=at_least(1))
    """Lengths of the prompts. A length that the engine does not take is cut."""
    max_tokens: int = field(default=512, metadata=at_least(2))
    """Maximum number of output tokens; at most half of `engine.max_seq_len` is used."""
    num_prompts: int = field(default=2, metadata=at_least(1))
    """Prompts of each length."""


@dataclass(frozen=True)
class TaskOptions:
    """What lm-evaluation-harness measures in the scenario `tasks`."""

    names: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness. Without a name, the scenario is left out."""
    include: str | None = None
    """A folder with task files of your own."""
    limit: int | None = field(default=None, metadata=at_least(1))
    """Documents of each task. Default: all."""
    num_fewshot: int | None = field(default=None, metadata=at_least(0))
    """Examples before each document. Default: as the task has it."""
    python: str | None = None
    """Python in whose environment `lm_eval` is installed. Default: that of specpipe."""


@dataclass(frozen=True)
class ValidateOptions:
    """What `validate` sends, compares and requires."""

    prompts: str | None = None
    """JSON lines with a `prompt` key. Default: 20 prompts that specpipe contains."""
    num_prompts: int = field(default=20, metadata=at_least(1))
    """Number of prompts to use."""
    max_tokens: int = field(default=64, metadata=at_least(1))
    """Maximum number of output tokens per answer."""
    repeats: int = field(default=1, metadata=at_least(1))
    """How often every prompt is sent."""
    gates: Mapping[str, float] = field(default_factory=dict, metadata=items_formerly(FORMER_NAMES))
    """Bounds on [metrics](#gates). `plan` refuses metrics that cannot be measured. `defects: 0` is
    set unless the file sets another bound."""
    baseline: Literal["build", "none"] | None = None
    """`build`: compare with a separate plain engine. `none`: compare with nothing. Default: the
    same server without speculation, where requests can turn it off."""
    scenarios: tuple[str, ...] = ()
    """[Scenarios](validation.md#scenarios) in addition to `answers`. `specpipe validate --full`
    runs all."""
    datasets: tuple[str, ...] = ()
    """More files of prompts, which the scenario `acceptance` measures one by one."""
    slo: Slo = Slo()
    concurrency: ConcurrencyOptions = ConcurrencyOptions()
    sampled: SampledOptions = SampledOptions()
    long: LongOptions = LongOptions()
    tasks: TaskOptions = TaskOptions()
