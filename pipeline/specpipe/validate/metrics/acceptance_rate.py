"""Share of drafted tokens that were accepted."""

from specpipe.validate.metrics import Figure, Metric, by_arm
from specpipe.validate.trials import Arm, Trials


def compute(trials: Trials) -> dict[Arm, Figure]:
    """acceptance_rate = accepted draft tokens / draft tokens, by request."""
    return by_arm(
        {
            "speculative": [
                t.accepted_draft_tokens / t.draft_tokens
                for t in trials.of("speculative")
                if t.draft_tokens
            ]
        }
    )


METRIC = Metric("acceptance_rate", "share", True, "Accepted draft tokens by draft tokens.", compute)
