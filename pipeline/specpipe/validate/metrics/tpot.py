"""Time per output token after the first response."""

from specpipe.validate.metrics import Figure, Metric, by_arm
from specpipe.validate.trials import ARMS, Arm, Trial, Trials


def compute(trials: Trials) -> dict[Arm, Figure]:
    """tpot = (last - first response) / tokens after the first response."""
    return by_arm({arm: [ms for t in trials.of(arm) if (ms := _ms(t)) is not None] for arm in ARMS})


def _ms(trial: Trial) -> float | None:
    later = trial.output_tokens - trial.first_tokens
    return (trial.total_s - trial.first_s) * 1e3 / later if later > 0 else None


METRIC = Metric("tpot_ms", "ms", False, "Time per output token after the first response.", compute)
