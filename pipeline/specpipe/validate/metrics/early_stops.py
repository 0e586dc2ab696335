"""Share of prompts whose answer ends before the reference's does, and agrees with it until then."""

from specpipe.validate.metrics import Figure, Metric, share_of
from specpipe.validate.trials import Arm, Trials


def compute(trials: Trials) -> dict[Arm, Figure]:
    """early_stops = prompts whose answer is a beginning of the reference's / prompts."""
    found: dict[Arm, Figure] = {}
    arms: tuple[Arm, ...] = ("plain", "speculative")
    for arm in arms:
        prompts = {trial.prompt for trial in trials.of(arm)}
        early = {d.prompt for d in trials.divergences if d.arm == arm and d.early}
        if prompts:
            found[arm] = share_of(len(early) / len(prompts), len(prompts))
    return found


METRIC = Metric(
    "early_stops",
    "share",
    False,
    "Share of prompts whose answer ends before that of transformers and agrees with it until then.",
    compute,
)
