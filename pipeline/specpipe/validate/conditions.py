"""What the figures of a report depend on, and what was left out and why."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from specpipe import __version__
from specpipe.config import RunConfig
from specpipe.validate.arms import Plain


@dataclass(frozen=True)
class Setting:
    """How a validation was run."""

    model: str  # that answered, of those that take text
    plain: Plain
    url: str | None  # of a server that was running already; None: one was started
    versions: Mapping[str, str]  # of the backend here


def conditions(config: RunConfig, prompts: int, setting: Setting) -> dict[str, str]:
    """Return what the numbers depend on; what is not known of the server is left out."""
    engine, options = config.engine, config.validate
    found = {
        "run": config.name,
        "model": config.target.model,
        "method": config.speculation.method
        + ("" if config.lossless else ", LOSSY where tokens are sampled"),
        "draft tokens": str(config.speculation.num_draft_tokens),
        "backend": f"{engine.backend}, {engine.dtype}, quantization {engine.quantization}",
        "load": f"{prompts} prompts, {options.repeats} repeat(s), one request at a time, "
        f"at most {options.max_tokens} tokens, greedy, as text through {setting.model}",
        "order": _order(setting),
        "specpipe": __version__,
    }
    if setting.url is not None:
        return {**found, "server": f"{setting.url}; its machine and its versions are not known"}
    versions = ", ".join(f"{k} {v}" for k, v in sorted(setting.versions.items()))
    machine = f"{_processor()}, {os.cpu_count()} CPUs"
    return {**found, "machine": machine, "versions": versions}


def _order(setting: Setting) -> str:
    parts = ["transformers first, by itself"]
    if setting.url is not None:
        parts = ["transformers first, while the server was running"]
    if setting.plain == "request":
        return "; ".join([*parts, "then the served arms in turns, on one server"])
    if setting.plain == "build":
        return "; ".join(
            [*parts, "then the run's server, then that of the plain engine, by itself each"]
        )
    return "; ".join([*parts, "then the run's server, without a plain arm"])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
