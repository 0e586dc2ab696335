"""Writes the chosen settings to a run's YAML: replaces one section, keeps the rest."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from specpipe.config.relocate import relocated
from specpipe.config.run_config import RunConfig
from specpipe.config.speculation import NoSpeculation, Speculation
from specpipe.config.yaml_nodes import compose, pairs_of, read_text
from specpipe.core.artifacts import write_text
from specpipe.core.errors import ConfigError
from specpipe.tune.candidates import is_tuned
from specpipe.tune.result import Tuning

_NOTES = "# Tuned by `specpipe tune`"
_NOTED = rf"(?:^{re.escape(_NOTES)}.*\n(?:^#.*\n)*)?"
# The section, and comments and empty lines only where more of it follows.
_SECTION = re.compile(
    rf"{_NOTED}^(speculation:.*\n(?:(?:[ \t]*#.*\n|[ \t]*\n)*[ \t]+[^\s#].*\n)*)", re.MULTILINE
)
# Keys that only a run with speculation can have.
_SPECULATIVE = ("validate.baseline", "validate.gates.speedup_over_plain")


def write_settings(config: RunConfig, out: Path, tuning: Tuning) -> list[str]:
    """Write the YAML of `config` with the tuned settings to `out`, which may be the same file.

    Relative paths become relative to the folder of `out`. If plain decoding is best, the section
    of the run stays as a comment, with its drafter and options. Returns a sentence for each thing
    that the file could not keep as a key. Raises ConfigError, and writes nothing, if the file is
    laid out so that its section cannot be replaced: as JSON, or with anchors that other sections
    name.
    """
    text, moved = relocated(read_text(Path(config.path)), config, out.absolute().parent)
    text = text if text.endswith("\n") else f"{text}\n"
    kept, remarks = "", list[str]()
    if isinstance(tuning.best, NoSpeculation) and (found := _SECTION.search(text)):
        text, remarks = _without_speculative(text, Path(config.path))
        kept = _commented(found[1])
        remarks += _left_out(config.speculation)
    changed = replace_speculation(text, tuning.best, notes(tuning), moved, kept)
    _require_yaml(changed, Path(config.path), tuning.best)
    write_text(out, changed)
    return remarks


def notes(tuning: Tuning) -> list[str]:
    """Return the figures of the choice, as comment lines for the file."""
    held, found = tuning.holdout, tuning.measured_best
    lines = [
        f"Tuned by `specpipe tune`: {held.tokens_a_step:.2f} tokens a step on held-out prompts,"
    ]
    if found is not None:
        lines.append(
            f"{held.speedup:.2f}x predicted, {found.overall:.2f}x measured "
            f"({found.speedup.p10:.2f} to {found.speedup.p90:.2f} by prompt)."
        )
    elif tuning.elsewhere:
        lines.append(f"{held.speedup:.2f}x predicted, priced for another machine.")
    else:
        lines.append("plain decoding: no setting was faster when it was measured.")
    if tuning.load.disturbed:
        lines.append("The machine was not quiet.")
    return lines


def _left_out(options: Speculation) -> list[str]:
    """Return what `method: none` has no keys for."""
    if isinstance(options, NoSpeculation):
        return []
    keys = ", ".join(key for key in _given(options))
    return [
        f"method none takes no options, so the {options.method} section ({keys}) is kept as a "
        "comment"
    ]


def _commented(section: str) -> str:
    lines = [f"# {line}".rstrip() for line in section.rstrip("\n").split("\n")]
    return "\n".join(["# Not chosen; replace the section above with it to use it:", *lines, ""])


def _without_speculative(text: str, file: Path) -> tuple[str, list[str]]:
    """Turn the keys that need speculation into comments; return a sentence for each."""
    remarks, lines = [], text.split("\n")
    for key in _SPECULATIVE:
        found = _lines_of(text, file, key)
        if found:
            for number in found:
                lines[number] = f"#{lines[number]}"
            remarks.append(f"{key} needs speculation, so it is kept as a comment")
            text = "\n".join(lines)
    return text, remarks


def _lines_of(text: str, file: Path, key: str) -> list[int]:
    """Return the lines of a key that has lines of its own; with its section, if it is the only one.

    Nothing if the key is not there, or is inside braces.
    """
    node, found = compose(text, file), list[int]()
    for name in key.split("."):
        block = isinstance(node, yaml.MappingNode) and not node.flow_style
        pairs = pairs_of(node, file) if block else {}
        if name not in pairs:
            return []
        place, node = pairs[name]
        found = [*found, place.start_mark.line] if len(pairs) == 1 else [place.start_mark.line]
    return found


def _require_yaml(text: str, config: Path, options: Speculation) -> None:
    try:
        pairs_of(compose(text, config), config)
    except ConfigError as error:
        section = {"speculation": {"method": options.method, **_given(options)}}
        raise ConfigError(
            f"{config} is not laid out in lines of keys that one section could be replaced in",
            hint=f"write these settings into it: {json.dumps(section)}",
        ) from error


def replace_speculation(
    text: str,
    options: Speculation,
    notes: Sequence[str],
    moved: Mapping[str, str] | None = None,
    kept: str = "",
) -> str:
    """Return the YAML `text` with `options` as its speculation section, below `notes`.

    `moved` has the new text of paths, `kept` is written below the section.
    """
    comments = "".join(f"# {note}\n" for note in notes)
    values = {"method": options.method, **_given(options, moved or {})}
    # JSON values are YAML values.
    block = "speculation:\n" + "".join(f"  {k}: {json.dumps(v)}\n" for k, v in values.items())
    found = _SECTION.search(text)
    if found is None:
        return f"{text.rstrip()}\n{comments}{block}{kept}"
    return text[: found.start()] + comments + block + kept + text[found.end() :]


def _given(record: Any, moved: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return what differs from the defaults, and what was tuned if it is not off (0)."""
    values = ((field, getattr(record, field.name)) for field in fields(record))
    return {
        field.name: _given(value, moved) if is_dataclass(value) else _place(value, moved or {})
        for field, value in values
        if value != field.default or (is_tuned(record, field.name) and value)
    }


def _place(value: Any, moved: Mapping[str, str]) -> Any:
    return moved.get(value, value) if isinstance(value, str) else value
