"""Speed-up of speculation over the same server without it."""

from specpipe.validate.metrics import Figure, Metric, speedups
from specpipe.validate.trials import Arm, Trials


def compute(trials: Trials) -> dict[Arm, Figure]:
    """speedup = time per token without speculation / with it, prompt by prompt."""
    return speedups(trials, "plain")


METRIC = Metric(
    "speedup_over_plain",
    "x",
    True,
    "Speed-up of speculation over the same server without it; below 1 is a loss.",
    compute,
)
