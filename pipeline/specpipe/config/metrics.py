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
}
