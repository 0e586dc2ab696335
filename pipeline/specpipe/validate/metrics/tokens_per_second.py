"""Output tokens per second, prompt processing included."""

from specpipe.validate.metrics import Figure, Metric, by_arm
from specpipe.validate.trials import ARMS, Arm, Trials


def compute(trials: Trials) -> dict[Arm, Figure]:
    """tokens_per_second = output tokens / time to the last of them."""
    return by_arm({arm: [t.output_tokens / t.total_s for t in trials.of(arm)] for arm in ARMS})


METRIC = Metric(
    "tokens_per_second",
    "tokens/s",
    True,
    "Output tokens per second of one request, prompt processing included.",
    compute,
)
