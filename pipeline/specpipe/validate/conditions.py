"""The conditions of a validation, on which the figures of its report depend."""

from collections.abc import Mapping
from dataclasses import dataclass

from specpipe import __version__
from specpipe.config.run_config import RunConfig
from specpipe.core.machine import describe_machine
from specpipe.plan.gates import Plain


@dataclass(frozen=True)
class Setting:
    """How a validation was run."""

    model: str  # the text model that answered
    plain: Plain
    url: str | None  # of a server that was already running; None: one was started
    versions: Mapping[str, str]  # of the backend here


def conditions(config: RunConfig, prompts: int, setting: Setting) -> dict[str, str]:
    """Return the conditions of the figures, without those that are not known of the server."""
    engine, options = config.engine, config.validate
    found = {
        "run": config.name,
        "model": config.target.model,
        "method": config.speculation.method
        + ("" if config.lossless else ", LOSSY where tokens are sampled"),
        "draft tokens": str(config.speculation.num_draft_tokens),
        "backend": f"{engine.backend}, {engine.dtype}, quantization {engine.quantization}",
        "load": f"{_plural(prompts, 'prompt')}, {_plural(options.repeats, 'repetition')}, "
        f"concurrency 1, max_tokens {options.max_tokens}, greedy, text requests to {setting.model}",
        "order": _order(setting),
        "specpipe": __version__,
    }
    if setting.url is not None:
        return {**found, "server": f"{setting.url}; its machine and versions are not known"}
    named = {k: v for k, v in setting.versions.items() if k != "format"}  # of engine folders
    versions = ", ".join(f"{k} {v}" for k, v in sorted(named.items()))
    return {**found, "machine": describe_machine(), "versions": versions}


def _order(setting: Setting) -> str:
    first = "transformers first, without a server"
    if setting.url is not None:
        first = "transformers first, while the server was running"
    if setting.plain == "request":
        return f"{first}; then plain and speculative decoding in turn, on one server"
    if setting.plain == "build":
        return f"{first}; then the run's server; then the server of the plain engine"
    return f"{first}; then the run's server; plain decoding was not measured"


def _plural(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
