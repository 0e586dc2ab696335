"""Speed-up over transformers in float32 on the same machine."""

from specpipe.validate.metrics import Figure, Metric, speedups
from specpipe.validate.trials import Arm, Trials


def compute(trials: Trials) -> dict[Arm, Figure]:
    """speedup = time per token of transformers / of the server, prompt by prompt."""
    return speedups(trials, "reference")


METRIC = Metric(
    "speedup_over_reference",
    "x",
    True,
    "Speed-up over transformers in float32 on this machine.",
    compute,
)
