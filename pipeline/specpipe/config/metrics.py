"""The table of metrics, which gates may bound. To add one: a file and a line here."""

FORMER_NAMES = {"time_per_token_ms": "tpot_ms"}  # old name -> present name

METRICS: dict[str, str] = {
    "exact_match": "specpipe.validate.metrics.exact_match:METRIC",
    "early_stops": "specpipe.validate.metrics.early_stops:METRIC",
    "greedy_agreement": "specpipe.validate.metrics.greedy_agreement:METRIC",
    "perplexity": "specpipe.validate.metrics.perplexity:METRIC",
    "ttft_ms": "specpipe.validate.metrics.ttft:METRIC",
    "tpot_ms": "specpipe.validate.metrics.tpot:METRIC",
    "tokens_per_second": "specpipe.validate.metrics.tokens_per_second:METRIC",
    "speedup_over_plain": "specpipe.validate.metrics.speedup_over_plain:METRIC",
    "speedup_over_reference": "specpipe.validate.metrics.speedup_over_reference:METRIC",
    "acceptance_length": "specpipe.validate.metrics.acceptance_length:METRIC",
    "acceptance_rate": "specpipe.validate.metrics.acceptance_rate:METRIC",
    "defects": "specpipe.validate.metrics.of_scenarios:DEFECTS",
    "kl_mean": "specpipe.validate.metrics.of_scenarios:KL_MEAN",
    "kl_p99": "specpipe.validate.metrics.of_scenarios:KL_P99",
    "top1_agreement": "specpipe.validate.metrics.of_scenarios:TOP1",
    "top10_agreement": "specpipe.validate.metrics.of_scenarios:TOP10",
    "goodput": "specpipe.validate.metrics.of_scenarios:GOODPUT",
    "long_equal": "specpipe.validate.metrics.of_scenarios:LONG_EQUAL",
    "task_accuracy": "specpipe.validate.metrics.of_scenarios:TASK_ACCURACY",
    "task_flips": "specpipe.validate.metrics.of_scenarios:TASK_FLIPS",
}
DEFAULT_GATES = {"defects": 0.0}  # unless the file sets other bounds; only where it was measured
SCENARIO_OF: dict[str, str] = {  # metric -> the only scenario that measures it
    "kl_mean": "accuracy",
    "kl_p99": "accuracy",
    "top1_agreement": "accuracy",
    "top10_agreement": "accuracy",
    "goodput": "concurrency",
    "long_equal": "long",
    "task_accuracy": "tasks",
    "task_flips": "tasks",
}
