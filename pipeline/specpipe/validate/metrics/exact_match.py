"""Share of prompts whose answer is the reference's."""

from specpipe.validate.metrics import Figure, Metric, share_of
from specpipe.validate.trials import Arm, Trials


def compute(trials: Trials) -> dict[Arm, Figure]:
    """exact_match = prompts without a divergence / prompts."""
    found: dict[Arm, Figure] = {}
    arms: tuple[Arm, ...] = ("plain", "speculative")
    for arm in arms:
        prompts = {trial.prompt for trial in trials.of(arm)}
        wrong = {d.prompt for d in trials.divergences if d.arm == arm}
        if prompts:
            found[arm] = share_of(1 - len(wrong) / len(prompts), len(prompts))
    return found


METRIC = Metric(
    "exact_match",
    "share",
    True,
    "Share of prompts whose greedy answer is that of transformers in float32: text, length, and "
    "the tokens where a model that takes tokens decodes alike.",
    compute,
)
