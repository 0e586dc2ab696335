"""Writes the chosen settings to the run's YAML: replaces one section, keeps the rest."""

import json
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from specpipe.config.speculation import Speculation
from specpipe.config.yaml_nodes import compose, pairs_of
from specpipe.core.artifacts import write_text
from specpipe.core.errors import ConfigError
from specpipe.tune.candidates import is_tuned
from specpipe.tune.tune import Tuning


def write_settings(config: Path, out: Path, tuning: Tuning) -> None:
    """Write the YAML of `config` with the tuned settings to `out`, which may be the same file.

    Raises ConfigError, and writes nothing, if the file is laid out so that its section cannot be
    replaced: as JSON, or with anchors that other sections name.
    """
    measured = tuning.measured_speedup
    notes = [
        f"Tuned by `specpipe tune`: {tuning.holdout.tokens_a_step:.2f} tokens a step on held-out "
        "prompts,",
        f"{tuning.holdout.speedup:.2f}x predicted, "
        + (f"{measured:.2f}x measured." if measured else "priced for another machine."),
    ]
    text = config.read_text(encoding="utf-8")
    changed = replace_speculation(text, tuning.best, notes)
    _require_yaml(changed, config, tuning.best)
    write_text(out, changed)


def _require_yaml(text: str, config: Path, options: Speculation) -> None:
    try:
        pairs_of(compose(text, config), config)
    except ConfigError as error:
        section = {"speculation": {"method": options.method, **_given(options)}}
        raise ConfigError(
            f"{config} is not laid out in lines of keys that one section could be replaced in",
            hint=f"write these settings into it: {json.dumps(section)}",
        ) from error


def replace_speculation(text: str, options: Speculation, notes: Sequence[str]) -> str:
    """Return the YAML `text` with `options` as its speculation section, below `notes`."""
    comments = "".join(f"# {note}\n" for note in notes)
    values = {"method": options.method, **_given(options)}
    # JSON values are YAML values.
    block = "speculation:\n" + "".join(f"  {k}: {json.dumps(v)}\n" for k, v in values.items())
    pattern = re.compile(r"^speculation:.*\n(?:(?:[ \t]+.*|[ \t]*#.*|[ \t]*)\n)*", re.MULTILINE)
    found = pattern.search(text)
    if found is None:
        return f"{text.rstrip()}\n{comments}{block}"
    return text[: found.start()] + comments + block + text[found.end() :]


def _given(record: Any) -> dict[str, Any]:
    """Return what differs from the defaults, and what was tuned if it is not off (0)."""
    values = ((field, getattr(record, field.name)) for field in fields(record))
    return {
        field.name: _given(value) if is_dataclass(value) else value
        for field, value in values
        if value != field.default or (is_tuned(record, field.name) and value)
    }
