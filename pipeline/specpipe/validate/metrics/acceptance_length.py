"""Mean acceptance length."""

from specpipe.validate.metrics import Figure, Metric, by_arm
from specpipe.validate.trials import Arm, Trials


def compute(trials: Trials) -> dict[Arm, Figure]:
    """acceptance_length = output tokens / steps; the target's own token counts, so 1 is no gain."""
    return by_arm(
        {
            "speculative": [
                len(t.tokens) / len(t.step_tokens)
                for t in trials.of("speculative")
                if t.step_tokens
            ]
        }
    )


METRIC = Metric(
    "acceptance_length",
    "tokens/step",
    True,
    "Tokens a step, the target's own (bonus) token included.",
    compute,
)
