"""Checks of the section `validate` before a build: its prompts, and gates without figures."""

import difflib
from collections.abc import Iterator
from typing import Literal

from specpipe.config.files import require_file
from specpipe.config.metrics import METRICS, SCENARIO_OF
from specpipe.config.run_config import RunConfig
from specpipe.config.scenarios import SCENARIOS
from specpipe.core.endpoint import Endpoint, Model
from specpipe.core.errors import ConfigError, Rejection
from specpipe.core.prompts import read_prompts

READ = ("greedy_agreement", "perplexity")  # computed from the logits after every token
Plain = Literal["request", "build", "none"]


def check_validation(config: RunConfig, endpoint: Endpoint) -> Iterator[Rejection]:
    """Refuse prompts that cannot be read, and gates on metrics that cannot be measured.

    Every reason begins with the file and line of its key.
    """
    yield from _check_prompts(config)
    yield from _check_scenarios(config)
    for name in config.validate.gates:
        place = config.places.get(f"validate.gates.{name}", config.path)
        key = f"{place}: 'validate.gates.{name}'"
        if name not in METRICS:
            close = difflib.get_close_matches(name, METRICS, 1)
            guess = f"; did you mean {close[0]!r}?" if close else ""
            yield Rejection(f"{key}: not a metric{guess}", f"known: {', '.join(METRICS)}")
        elif reason := why_unmeasured(name, config, endpoint):
            yield Rejection(f"{key}: {reason}", "remove the gate")


def _check_scenarios(config: RunConfig) -> Iterator[Rejection]:
    for name in config.validate.scenarios:
        if name not in SCENARIOS:
            place = config.places.get("validate.scenarios", config.path)
            close = difflib.get_close_matches(name, SCENARIOS, 1)
            guess = f"; did you mean {close[0]!r}?" if close else ""
            yield Rejection(
                f"{place}: 'validate.scenarios': no scenario is called {name!r}{guess}",
                f"known: {', '.join(SCENARIOS)}",
            )


def require_valid(config: RunConfig, endpoint: Endpoint) -> None:
    """Raise ConfigError with every reason of `check_validation`."""
    found = list(check_validation(config, endpoint))
    if found:
        raise ConfigError("\n".join(str(rejection) for rejection in found))


def why_unmeasured(name: str, config: RunConfig, endpoint: Endpoint) -> str | None:
    """Return why a metric cannot be measured on a server; None if it can."""
    if name in READ and not (endpoint.tokens and endpoint.tokens.gives_context_logits):
        over_http = endpoint.api == "openai"
        server = "an OpenAI API" if over_http else f"backend {config.engine.backend}"
        return (
            f"{name} is computed from the logits after every token of a prompt, which {server} "
            "does not serve"
        )
    scenario = SCENARIO_OF.get(name)
    if scenario is not None and scenario not in config.validate.scenarios:
        return f"{name} is measured by the scenario {scenario}, which validate.scenarios lacks"
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


def plain_by(config: RunConfig, text: Model) -> Plain:
    """Return what decodes without speculation: a request to the same server, a baseline or nothing.

    An engine that speculates in every request has no plain arm unless a baseline is built for it.
    """
    if config.validate.baseline is not None:
        return config.validate.baseline
    return "request" if text.can_decode_plainly else "none"


def speculates(config: RunConfig) -> bool:
    """Tell whether the run speculates; only then can it be compared with plain decoding."""
    return config.speculation.num_draft_tokens > 0
