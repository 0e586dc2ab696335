"""Gates: bounds on metrics. A bound is a minimum if larger is better, otherwise a maximum."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from specpipe.building import Rejection
from specpipe.config import RunConfig, require_file
from specpipe.endpoint import Endpoint
from specpipe.errors import ConfigError
from specpipe.prompts import read_prompts
from specpipe.validate.arms import plain_by, speculates
from specpipe.validate.metrics import METRICS, Figure, Metric, load_metrics
from specpipe.validate.trials import Arm

READ = ("greedy_agreement", "perplexity")  # computed from the logits after every token


@dataclass(frozen=True)
class GateResult:
    """One gate, and whether it passed."""

    name: str
    arm: Arm
    bound: float
    value: float | None  # None: the metric has no samples
    passed: bool

    def __str__(self) -> str:
        seen = "not measured"
        if self.value is not None:
            seen = _number(self.value)
            if not self.passed and seen == _number(self.bound):  # do not round a failure away
                seen = str(self.value)
        return f"{self.name} = {seen} (required: {self.relation} {_number(self.bound)})"

    @property
    def relation(self) -> str:
        """The comparison that the value must satisfy."""
        larger = {metric.name: metric.larger_is_better for metric in load_metrics()}
        return ">=" if larger.get(self.name, True) else "<="


def _number(value: float) -> str:
    """Return a number with four significant digits, and at least two decimals if it is small."""
    short = f"{value:.4g}" if abs(value) < 9999.5 else f"{value:.0f}"
    return f"{value:.2f}" if abs(value) < 100 and float(f"{value:.2f}") == float(short) else short


def check_validation(config: RunConfig, endpoint: Endpoint) -> Iterator[Rejection]:
    """Refuse prompts that cannot be read, and gates on metrics that cannot be measured.

    Every reason begins with the file and line of its key.
    """
    yield from _check_prompts(config)
    for name in config.validate.gates:
        place = config.places.get(f"validate.gates.{name}", config.path)
        key = f"{place}: 'validate.gates.{name}'"
        if name not in METRICS:
            close = difflib.get_close_matches(name, METRICS, 1)
            guess = f"; did you mean {close[0]!r}?" if close else ""
            yield Rejection(f"{key}: not a metric{guess}", f"known: {', '.join(METRICS)}")
        elif reason := why_unmeasured(name, config, endpoint):
            yield Rejection(f"{key}: {reason}", "remove the gate")


def require_valid(config: RunConfig, endpoint: Endpoint) -> None:
    """Raise ConfigError with every reason of `check_validation`."""
    found = list(check_validation(config, endpoint))
    if found:
        raise ConfigError("\n".join(str(rejection) for rejection in found))


def why_unmeasured(name: str, config: RunConfig, endpoint: Endpoint) -> str | None:
    """Return why a metric cannot be measured on a server; None if it can."""
    if name in READ and not (endpoint.tokens and endpoint.tokens.gives_context_logits):
        return (
            f"{name} is computed from the logits after every token of a prompt, which backend "
            f"{config.engine.backend} does not serve"
        )
    if name == "speedup_over_plain" and speculates(config):
        if config.validate.baseline == "none":
            return "validate.baseline is none, so there is nothing to compare with"
        if plain_by(config, endpoint.text) == "none":
            return (
                f"no request can turn the speculation of method {config.speculation.method} off; "
                "set validate.baseline: build to compare with a plain engine"
            )
    return None


def _check_prompts(config: RunConfig) -> Iterator[Rejection]:
    name = config.validate.prompts
    if name is None:
        return
    try:
        file = require_file(name, config, "validate.prompts")
    except ConfigError as error:
        yield _rejection(error)
        return
    try:
        read_prompts(file)
    except ConfigError as error:
        place = config.places.get("validate.prompts", config.path)
        found = _rejection(error)
        yield Rejection(f"{place}: 'validate.prompts': {found.reason}", found.hint)


def _rejection(error: ConfigError) -> Rejection:
    return Rejection(error.args[0], error.hint or "give a file of JSON lines in UTF-8")


def judge(
    gates: Mapping[str, float],
    metrics: Sequence[Metric],
    figures: Mapping[str, Mapping[Arm, Figure]],
    arm: Arm,
) -> list[GateResult]:
    """Compare the median of every gated metric of `arm` with its bound."""
    results = []
    for metric in metrics:
        if metric.name in gates:
            bound = gates[metric.name]
            found = figures[metric.name].get(arm)
            value = found.median if found else None
            passed = value is not None and (
                value >= bound if metric.larger_is_better else value <= bound
            )
            results.append(GateResult(metric.name, arm, bound, value, passed))
    return results
