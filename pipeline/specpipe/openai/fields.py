"""Read the fields of a JSON body: each value is checked, and a refusal names its field."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from specpipe.core.errors import ConfigError

Body = Mapping[str, Any]


class InvalidField(ConfigError):
    """A field of a request that cannot be used; `param` is its name."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


def number(body: Body, name: str, low: float, high: float) -> float | None:
    """Return a number between two bounds, or None if it was left out or null."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidField(name, f"{name} is {_shown(value)}: must be a number")
    if not low <= value <= high:
        raise InvalidField(name, f"{name} is {value}: must be from {low:g} to {high:g}")
    return float(value)


def whole(body: Body, name: str, low: int, high: int = 2**31 - 1) -> int | None:
    """Return a whole number between two bounds, or None if it was left out or null."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidField(name, f"{name} is {_shown(value)}: must be a whole number")
    if not low <= value <= high:
        raise InvalidField(name, f"{name} is {value}: must be from {low} to {high}")
    return value


def flag(body: Body, name: str) -> bool:
    """Return true or false; false if it was left out or null."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidField(name, f"{name} is {_shown(value)}: must be true or false")
    return bool(value)


def text(body: Body, name: str) -> str | None:
    """Return a text, or None if it was left out or null."""
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidField(name, f"{name} is {_shown(value)}: must be a string")
    return value


def texts(body: Body, name: str) -> tuple[str, ...]:
    """Return the texts of a field that may hold one text or a list; empty if it was left out."""
    value = body.get(name)
    if value is None:
        return ()
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, Sequence) or not all(isinstance(item, str) for item in found):
        raise InvalidField(name, f"{name} is {_shown(value)}: must be a string or a list of them")
    return tuple(found)


def record(body: Body, name: str) -> Body:
    """Return an object; empty if it was left out or null."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidField(name, f"{name} is {_shown(value)}: must be an object")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
