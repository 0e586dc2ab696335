"""Perplexity of the prompts and the reference's answers."""

import math

from specpipe.validate.metrics import Figure, Metric
from specpipe.validate.trials import ARMS, Arm, Trials


def compute(trials: Trials) -> dict[Arm, Figure]:
    """perplexity = exp(-mean of log-likelihoods), over the tokens of all texts but each first."""
    found: dict[Arm, Figure] = {}
    for arm in ARMS:
        samples = [x for reading in trials.read_by(arm) for x in reading.log_likelihoods]
        if samples:
            value = math.exp(-sum(samples) / len(samples))
            found[arm] = Figure(value, value, value, len(samples))
    return found


METRIC = Metric(
    "perplexity",
    "tokens",
    False,
    "Of the prompts and transformers' answers: lower is better, that of transformers is the goal.",
    compute,
)
