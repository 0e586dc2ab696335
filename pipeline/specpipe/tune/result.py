"""The result of `tune`: what was predicted, what was measured, and what was chosen."""

from dataclasses import dataclass

from specpipe.config.speculation import NoSpeculation, Speculation
from specpipe.tune.cost import CostCurve
from specpipe.tune.machine_load import MachineLoad
from specpipe.validate.metrics import Figure

GAIN = 1.03  # a setting must promise and reach this much, or plain decoding is chosen


@dataclass(frozen=True)
class Prediction:
    """The predicted figures of a setting."""

    options: Speculation
    tokens_a_step: float
    ms_a_token: float
    speedup: float  # over plain decoding


@dataclass(frozen=True)
class Raced:
    """The times of a setting and of plain decoding, in turn for the same prompts."""

    options: Speculation
    predicted: float  # speed-up, on the prompts on which settings are chosen
    ms_a_token: Figure  # prompt by prompt, after the first step, which reads the prompt
    plain_ms_a_token: Figure
    speedup: Figure  # prompt by prompt
    overall: float  # the ratio of the mean times

    @property
    def contradicts(self) -> bool:
        """Whether a gain was predicted and none was measured."""
        return self.predicted >= GAIN and self.overall < GAIN


@dataclass(frozen=True)
class Tuning:
    """The best settings and their figures."""

    best: Speculation  # NoSpeculation: do not speculate
    tried: tuple[Prediction, ...]  # on the fitting half of the prompts, the best first
    holdout: Prediction  # the best one on the other half
    measured: tuple[Raced, ...]  # settings that were decoded, the fastest first; (): elsewhere
    cost: CostCurve
    break_even_batch: int  # for an engine that batches; see `CostCurve.break_even_batch`
    accuracy: tuple[tuple[float, ...], ...]  # of the heads, [heads, ranks]; empty without heads
    elsewhere: bool  # the step times are not those of this machine
    load: MachineLoad
    estimated: bool = False  # the step times were computed, not measured

    @property
    def measured_best(self) -> Raced | None:
        """The figures of the choice, if it was decoded."""
        return next((found for found in self.measured if found.options == self.best), None)

    @property
    def contradiction(self) -> str | None:
        """Return in what the measurement differs from the prediction; None if it agrees."""
        if not self.measured or not self.tried:
            return None
        first = next((m for m in self.measured if m.options == self.tried[0].options), None)
        if first is None or self.best == first.options:
            return None
        what = f"predicted {first.predicted:.2f}x, measured {first.overall:.2f}x"
        if isinstance(self.best, NoSpeculation):
            if not any(found.contradicts for found in self.measured):
                return None
            return f"the measurement contradicts the prediction ({what}): none is best here"
        return f"the setting with the best prediction ({what}) was not the fastest when measured"


@dataclass(frozen=True)
class Recommendation:
    """Plain decoding and every method at its best, the fastest first."""

    found: tuple[Prediction, ...]  # for the held-out prompts
    measured: tuple[Raced, ...]  # the methods that were decoded, the fastest first
    load: MachineLoad

    def measured_of(self, options: Speculation) -> Raced | None:
        """Return the figures of a method's best settings, if they were decoded."""
        return next((m for m in self.measured if m.options == options), None)
