"""Metadata of the fields of records: possible values of a key, and its former spellings."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Bound:
    """A test that a value must pass, and its description in words."""

    low: float | None = None
    high: float | None = None
    pattern: str | None = None
    meaning: str = ""  # the pattern in words

    def problem(self, value: object) -> str | None:
        """Return what is wrong with `value`; None if nothing is."""
        if self.pattern is not None and not re.fullmatch(self.pattern, str(value)):
            return f"must be {self.meaning}"
        if self.low is not None and isinstance(value, (int, float)) and not value >= self.low:
            return f"must be at least {self.low:g}"
        if self.high is not None and isinstance(value, (int, float)) and not value <= self.high:
            return f"must be at most {self.high:g}"
        return None


def at_least(low: float) -> dict[str, Bound]:
    """Field metadata: the value is a number not below `low`."""
    return {"bound": Bound(low=low)}


def between(low: float, high: float) -> dict[str, Bound]:
    """Field metadata: the value is a number in [low, high]."""
    return {"bound": Bound(low=low, high=high)}


def matching(pattern: str, meaning: str) -> dict[str, Bound]:
    """Field metadata: the whole text matches the pattern, which `meaning` puts in words."""
    return {"bound": Bound(pattern=pattern, meaning=meaning)}


def one_of(choices: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Field metadata: the value is one of these words."""
    return {"choices": tuple(choices)}


def formerly(name: str) -> dict[str, str]:
    """Field metadata: the key was called `name` before; files may still call it so."""
    return {"formerly": name}


def items_formerly(names: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    """Field metadata: keys of the mapping that were called otherwise, old name -> present name."""
    return {"items_formerly": names}


def value_formerly(
    value: str, keys: Mapping[str, str]
) -> dict[str, Mapping[str, Mapping[str, str]]]:
    """Field metadata: a former value, and the keys of the record that express it now."""
    return {"values_formerly": {value: keys}}


def not_written() -> dict[str, bool]:
    """Field metadata: no key of the file, but set by whoever reads it."""
    return {"key": False}
