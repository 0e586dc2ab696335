"""Texts to send to a model: JSON lines with a "prompt" key."""

import json
from pathlib import Path

from specpipe.core.errors import ConfigError

DEFAULT = Path(__file__).with_name("prompts.jsonl")


def read_prompts(path: Path | None) -> list[str]:
    """Return the prompts of a file, or the 20 mixed ones that come with specpipe.

    Raises ConfigError for a file that cannot be read, or naming the line that is not an object
    with a "prompt" text.
    """
    file = path or DEFAULT
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # U+2028 may stand in a JSON text
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file}: cannot be read: {error}", hint="give a file of JSON lines in UTF-8"
        ) from error
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f'{file}:{number}: must be a JSON object with a "prompt"') from error
        if not isinstance(prompt, str) or not prompt:
            raise ConfigError(f'{file}:{number}: "prompt" must be a text that is not empty')
        prompts.append(prompt)
    if not prompts:
        raise ConfigError(f"{file}: no prompts")
    return prompts
