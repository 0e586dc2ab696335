"""The prompts of a benchmark: the files that the user gives, or those of the run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specpipe.config.files import require_file
from specpipe.config.run_config import RunConfig
from specpipe.core.prompts import read_prompts


@dataclass(frozen=True)
class PromptSet:
    """Prompts that are measured together, and the name of their file."""

    name: str
    prompts: tuple[str, ...]


def prompt_sets(config: RunConfig, files: Sequence[Path], count: int) -> list[PromptSet]:
    """Return `count` prompts of every file; without files, of the run's `validate.prompts`.

    A run without that key has the prompts that come with specpipe. Raises ConfigError if a file
    cannot be read or has no prompts.
    """
    if files:
        return [_read(file.stem, file, count) for file in files]
    own = config.validate.prompts
    if own is None:
        return [_read("built-in", None, count)]
    file = require_file(own, config, "validate.prompts")
    return [_read(file.stem, file, count)]


def _read(name: str, file: Path | None, count: int) -> PromptSet:
    return PromptSet(name, tuple(spaced(read_prompts(file), count)))


def spaced(prompts: Sequence[str], count: int) -> list[str]:
    """Return `count` evenly spaced prompts; all of them if there are fewer."""
    return list(prompts[:: max(1, len(prompts) // count)][:count])
