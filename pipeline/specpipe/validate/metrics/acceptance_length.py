"""Mean acceptance length."""

from specpipe.validate.metrics import Figure, Metric, by_arm
from specpipe.validate.trials import Arm, Trials


def compute(trials: Trials) -> dict[Arm, Figure]:
    """acceptance_length = output tokens / steps; the target's own token counts, so 1 is no gain.

    Steps are counted where a model that takes tokens shows them. Elsewhere a step is taken to emit
    its accepted draft tokens and one of the target's own: steps = output - accepted tokens.
    """
    seen = [d for d in trials.decodings if d.arm == "speculative" and d.step_tokens]
    lengths = [len(d.tokens) / len(d.step_tokens) for d in seen]
    if not lengths:
        lengths = [
            t.output_tokens / (t.output_tokens - t.accepted_draft_tokens)
            for t in trials.of("speculative")
            if t.draft_tokens and t.output_tokens > t.accepted_draft_tokens
        ]
    return by_arm({"speculative": lengths})


METRIC = Metric(
    "acceptance_length",
    "tokens/step",
    True,
    "Tokens a step, the target's own (bonus) token included.",
    compute,
)
