"""The exceptions, each with a sentence for the user, a hint, and an exit code.

SpecpipeError            exit code 1: an internal error, a bug of specpipe
├── ConfigError          2: the YAML file, a flag or an input file is wrong
├── Unsupported          3: valid, but not supported by this backend, release or machine
├── StageFailed          4: a stage started and did not finish
│   └── Unavailable      6: a server is absent, stopped or busy; the same command may work later
└── GateFailed           5: everything ran, but a result misses a gate
"""

from collections.abc import Sequence
from dataclasses import dataclass


class SpecpipeError(Exception):
    """The parent of every error raised on purpose: a sentence and, if known, the next step."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ConfigError(SpecpipeError):
    """Something that the user wrote is invalid."""

    exit_code = 2


class Unreadable(ConfigError):
    """An input file is missing or cannot be read; nothing is known about its content."""


class Unsupported(SpecpipeError):
    """The request is valid, but not supported here."""

    exit_code = 3


class StageFailed(SpecpipeError):
    """A stage of the pipeline did not finish; it left no partial output."""

    exit_code = 4


class Unavailable(StageFailed):
    """A server is unreachable, has ended or accepts no further request; a retry may help."""

    exit_code = 6


class GateFailed(SpecpipeError):
    """All checks ran, and a result misses a gate, or an inspected artifact has defects."""

    exit_code = 5


@dataclass(frozen=True)
class Rejection:
    """One reason why something cannot be done, and what to change."""

    reason: str
    hint: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.hint}"


def first_few(names: Sequence[str]) -> str:
    """List names in a sentence: the first four, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
