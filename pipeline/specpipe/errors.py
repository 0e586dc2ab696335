"""What can go wrong, as sentences for the person who can fix them.

SpecpipeError            exit code 1: a bug of ours
├── ConfigError          2: the YAML file, a flag or an input file is wrong
├── Unsupported          3: right, but this backend, version or machine cannot do it
├── StageFailed          4: a stage started and did not finish
│   └── Unavailable      6: a server is absent, gone or busy; the same command may work later
└── GateFailed           5: everything ran, and the result is not good enough
"""

from collections.abc import Sequence


class SpecpipeError(Exception):
    """The parent of every error raised on purpose: a sentence and, if known, what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ConfigError(SpecpipeError):
    """Something the user wrote cannot be used as it stands."""

    exit_code = 2


class Unreadable(ConfigError):
    """An input file is missing or the machine refuses to read it; its content is not at fault."""


class Unsupported(SpecpipeError):
    """The request is well formed, but cannot be served here."""

    exit_code = 3


class StageFailed(SpecpipeError):
    """A stage of the pipeline broke off; nothing half-written was left behind."""

    exit_code = 4


class Unavailable(StageFailed):
    """A server cannot be reached, has ended, or takes no further request: trying again may help."""

    exit_code = 6


class GateFailed(SpecpipeError):
    """Validation ran to its end and a gate of the config was not met."""

    exit_code = 5


def first_few(names: Sequence[str]) -> str:
    """List names in a sentence: the first four, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
