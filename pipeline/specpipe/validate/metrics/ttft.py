"""Time to first token."""

from specpipe.validate.metrics import Figure, Metric, by_arm
from specpipe.validate.trials import ARMS, Arm, Trials


def compute(trials: Trials) -> dict[Arm, Figure]:
    """ttft = first response - request sent, in milliseconds."""
    return by_arm({arm: [t.first_s * 1e3 for t in trials.of(arm)] for arm in ARMS})


METRIC = Metric(
    "ttft_ms", "ms", False, "Time from sending a request to its first response.", compute
)
