"""The conditions of a validation, on which the figures of its report depend."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from specpipe import __version__
from specpipe.config.run_config import RunConfig
from specpipe.core.commit import find_commit
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
        "config": _digest(config),
        "specpipe": _release(),
    }
    if setting.url is not None:
        return {**found, "server": f"{setting.url}; its machine and versions are not known"}
    named = {k: v for k, v in setting.versions.items() if k != "format"}  # of engine folders
    versions = ", ".join(f"{k} {v}" for k, v in sorted(named.items()))
    busy = f"load average {os.getloadavg()[0]:.1f} over the last minute of the validation"
    machine = {"machine": describe_machine(), "other work": busy}
    return {**found, **machine, "versions": versions}


def _digest(config: RunConfig) -> str:
    """Return the file of a run with the digest of its bytes; without it if there is no file."""
    file = Path(config.path)
    if not file.is_file():
        return config.path
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return f"{file.name}, sha256 {digest[:16]}"


def _release() -> str:
    commit = find_commit(Path(__file__).parent)
    return f"{__version__}, commit {commit}" if commit else __version__


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
