"""Share of positions where a model's most likely token is the reference's."""

from specpipe.validate.metrics import Figure, Metric, share_of
from specpipe.validate.trials import ARMS, Arm, Trials


def compute(trials: Trials) -> dict[Arm, Figure]:
    """greedy_agreement = tokens of the reference's answers that are the likeliest / tokens."""
    found: dict[Arm, Figure] = {}
    for arm in ARMS:
        chosen = [yes for reading in trials.read_by(arm) for yes in reading.chosen]
        if chosen:
            found[arm] = share_of(sum(chosen) / len(chosen), len(chosen))
    return found


METRIC = Metric(
    "greedy_agreement",
    "share",
    True,
    "Share of the tokens of transformers' answers that the model would choose at the same place.",
    compute,
)
