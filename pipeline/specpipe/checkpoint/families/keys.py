"""Reads the keys of Hugging Face's config.json by type, for every architecture.

A wrong value is refused here with its key and its file, before a family computes with it. Keys that
no family reads are not looked at.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from specpipe.core.errors import ConfigError, Unsupported

MOST = 2**40
MOST_LAYERS = 10_000  # of which lists are made


@dataclass(frozen=True)
class Keys:
    """One JSON object of a config.json.

    An absent key has its value in `defaults`, which are those of transformers' config class; `null`
    is a value of its own. `aliases` are other spellings that the class reads.
    """

    values: Mapping[str, Any]
    file: Path
    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    within: str = ""  # the key of this object, with a dot; empty for the whole file

    def has(self, key: str) -> bool:
        """Tell whether the file gives the key a value, and not `null`."""
        spelling = self._spelling(key)
        return self.values.get(spelling) is not None

    def given(self, key: str) -> bool:
        """Tell whether the file has the key, perhaps as `null`."""
        return self._spelling(key) in self.values

    def whole(self, key: str, *, least: int = 1, most: int = MOST) -> int:
        """Return a whole number between two bounds."""
        value = self._value(key)
        if not is_whole(value) or not least <= value <= most:
            above = {0: "a whole number", 1: "a positive whole number"}.get(
                least, f"{least} or more"
            )
            bound = f", at most {most}" if most != MOST else ""
            raise self.wrong(key, above + bound)
        return value

    def maybe_whole(self, key: str, *, least: int = 1) -> int | None:
        """Return a whole number; None for `null`."""
        return None if self._value(key) is None else self.whole(key, least=least)

    def layers(self, key: str) -> int:
        """Return a number of layers, small enough to list them."""
        return self.whole(key, most=MOST_LAYERS)

    def number(self, key: str, *, above: float | None = None) -> float:
        """Return a finite number, at least 0 or greater than `above`."""
        value = self._value(key)
        if not is_number(value) or (value < 0 if above is None else value <= above):
            bound = "" if above is None else f" above {above:g}"
            raise self.wrong(key, f"a number{bound}")
        return float(value)

    def maybe_number(self, key: str, *, above: float | None = None) -> float | None:
        """Return a number; None for `null`."""
        return None if self._value(key) is None else self.number(key, above=above)

    def flag(self, key: str) -> bool:
        """Return true or false; `null` is false, as in Python."""
        value = self._value(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return bool(value)

    def word(self, key: str) -> str:
        """Return a text that is not empty."""
        value = self._value(key)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, "a name")
        return value

    def words(self, key: str) -> tuple[str, ...]:
        """Return a list of texts; empty if it is absent or `null`."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of names")
        return tuple(value)

    def places(self, key: str) -> list[int]:
        """Return a list of indices of layers; empty if it is absent or `null`."""
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(is_whole(n) and n >= 0 for n in value):
            raise self.wrong(key, "a list of layers")
        return value

    def numbers(self, key: str, length: int) -> list[float]:
        """Return a list of `length` positive numbers."""
        value = self._value(key)
        fits = isinstance(value, list) and all(is_number(item) and item > 0 for item in value)
        if not fits or len(value) != length:
            raise self.wrong(key, f"a list of {length} positive numbers")
        return [float(item) for item in value]

    def table(self, key: str) -> "Keys":
        """Return the keys of an object; of an empty one if it is absent or `null`."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Keys(value or {}, self.file, within=f"{self.within}{key}.")

    def among(self, key: str, *known: str) -> str:
        """Return a name; raises Unsupported unless it is one of `known`."""
        word = self.word(key)
        if word not in known:
            raise self.unsupported(f"has {key} {word!r}; known here: {', '.join(known)}")
        return word

    def wrong(self, key: str, wanted: str) -> ConfigError:
        """Return the error for a key whose value is not what is `wanted`."""
        spelling = f"{self.within}{self._spelling(key)}"
        if not self.given(key) and key not in self.defaults:
            return ConfigError(f"{self.file}: '{spelling}' is missing: must be {wanted}")
        return ConfigError(
            f"{self.file}: '{spelling}' is {short(self._value(key))}: must be {wanted}"
        )

    def unsupported(self, sentence: str, hint: str | None = None) -> Unsupported:
        """Return the error for a value that is valid and cannot be converted."""
        return Unsupported(f"{self.file} {sentence}", hint=hint)

    def contradiction(self, sentence: str) -> ConfigError:
        """Return the error for keys that do not go together."""
        return ConfigError(f"{self.file}: {sentence}")

    def with_values(self, **values: Any) -> "Keys":
        """Return the keys with some values replaced."""
        return replace(self, values={**self.values, **values})

    def _spelling(self, key: str) -> str:
        other = self.aliases.get(key, key)
        return other if key not in self.values and other in self.values else key

    def _value(self, key: str) -> Any:
        return self.values.get(self._spelling(key), self.defaults.get(key))


def is_whole(value: object) -> TypeGuard[int]:
    """Tell whether a JSON value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether a JSON value is a finite number that a float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300 and math.isfinite(value)


def short(value: object) -> str:
    """Return a value as text of at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
