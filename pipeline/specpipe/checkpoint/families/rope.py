"""Reads the rotary positions of a config.json, in every spelling that transformers reads.

transformers 5 writes `rope_parameters`, older releases write `rope_theta` and `rope_scaling`, with
`type` before `rope_type`. Base and rotated share may lie in these objects or next to them. Where a
file has two values for one fact, the releases differ in which of them they take, so it is refused.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from specpipe.checkpoint.families.keys import Keys
from specpipe.core.model import yarn_attention

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
BASES, SHARES = ("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")
ORIGINAL = "original_max_position_embeddings"
_NEEDED = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
_MAYBE = ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


@dataclass(frozen=True)
class Rope:
    """The rotary positions of a model; `scaling` is None if they are plain."""

    base: float
    share: float  # of every head, that is rotated
    scaling: dict[str, Any] | None = None  # HF's `rope_scaling`, with what transformers assumes
    reach: int = 0  # positions that yarn extends the model to; 0: of other kinds
    limits: tuple[str, ...] = ()  # what upstream computes otherwise


def read_rope(hf: Keys, kinds: Sequence[str] = KINDS, *, longest: int) -> Rope:
    """Return base, share and scaling; `longest` is max_position_embeddings.

    Dynamic NTK scaling begins behind `max_position_embeddings`, where no engine goes, so it is
    plain. Raises Unsupported for other kinds than `kinds`, ConfigError for contradictions.
    """
    tables = [hf.table(name) for name in ("rope_scaling", "rope_parameters")]
    rule = _the_rule(hf, tables)
    kind = _kind(rule, kinds)
    base = _agreed(hf, tables, BASES, above=1.0 if kind == "yarn" else 0.0)
    share = _agreed(hf, tables, SHARES, optional=True)
    if share > 1:
        raise hf.contradiction(f"'partial_rotary_factor' is {share:g}: must be at most 1")
    if kind in ("default", "dynamic"):
        return Rope(base, share)
    scaling = {k: v for k, v in rule.values.items() if k not in (*BASES, *SHARES)}
    scaling |= _kinds(rule, kind) | {
        key: rule.number(key, above=0) for key in _NEEDED.get(kind, ())
    }
    if kind != "linear":
        scaling[ORIGINAL] = _original(hf, rule, longest)
    if kind == "llama3":
        _require_order(rule)
    if kind != "yarn":
        return Rope(base, share, scaling)
    scaling = _yarn(rule, scaling, longest)
    reach = int(scaling["factor"] * scaling[ORIGINAL])
    return Rope(base, share, scaling, reach, _limits(scaling))


def rotated(hf: Keys, head_size: int, share: float) -> int:
    """Return how many values of every head are rotated; raises ConfigError for an odd number."""
    width = int(head_size * share)
    if width < 2 or width % 2:
        raise hf.contradiction(
            f"{width} of a head's {head_size} values would be rotated: must be an even number "
            "('head_dim', or 'hidden_size' by 'num_attention_heads')"
        )
    return width


def _the_rule(hf: Keys, tables: Sequence[Keys]) -> Keys:
    """Return the object that states the kind; refuses two that differ."""
    found = [table for table in tables if table.values]
    if len(found) == 2 and _compared(found[0]) != _compared(found[1]):
        raise hf.contradiction(
            "'rope_scaling' and 'rope_parameters' differ: remove the one with which the model was "
            "not trained"
        )
    return found[0] if found else tables[0]


def _compared(table: Keys) -> dict[str, Any]:
    """Return what two objects must have in common; the base is compared apart."""
    apart = (*BASES, *SHARES, "type", "rope_type")
    kind = table.values.get("rope_type", table.values.get("type", "default"))
    return {**{k: v for k, v in table.values.items() if k not in apart}, "rope_type": kind}


def _kind(rule: Keys, kinds: Sequence[str]) -> str:
    nested = next((key for key, value in rule.values.items() if isinstance(value, dict)), None)
    if nested is not None:
        raise rule.unsupported(f"has rope parameters of its own for {rule.within}{nested} layers")
    key = "rope_type" if "rope_type" in rule.values else "type"
    kind = rule.word(key) if key in rule.values else "default"
    kind = "longrope" if kind == "su" else kind
    if kind not in kinds:
        raise rule.unsupported(
            f"has rope scaling of type {kind!r} ({rule.within}{key})",
            hint=f"known: {', '.join(kinds)}; backend: llmapi serves the model without conversion",
        )
    return kind


def _kinds(rule: Keys, kind: str) -> dict[str, str]:
    """Return both spellings of the kind, as far as they are there: upstream reads `type` first."""
    return {"rope_type": kind, **({"type": kind} if "type" in rule.values else {})}


def _agreed(
    hf: Keys,
    tables: Sequence[Keys],
    names: Sequence[str],
    *,
    above: float = 0.0,
    optional: bool = False,
) -> float:
    """Return the one value that a file gives under several names; `optional`: null is none."""
    found: dict[str, float] = {}
    for keys in (*tables, hf):
        for name in names:
            if keys.has(name) or (keys.given(name) and not optional):
                found[f"{keys.within}{name}"] = keys.number(name, above=above)
    if len(set(found.values())) > 1:
        both = " and ".join(f"'{name}' is {value:g}" for name, value in found.items())
        raise hf.contradiction(f"{both}: keep the one with which the model was trained")
    default = next((hf.defaults[name] for name in names if name in hf.defaults), 1.0)
    return next(iter(found.values()), float(default))


def _original(hf: Keys, rule: Keys, longest: int) -> int:
    """Return the length before scaling; a class with an own default does not read the rule's."""
    places = [hf] if hf.has(ORIGINAL) or ORIGINAL in hf.defaults else []
    places += [rule] if rule.has(ORIGINAL) else []
    found = {f"{keys.within}{ORIGINAL}": keys.whole(ORIGINAL) for keys in places}
    if len(set(found.values())) > 1:
        both = " and ".join(f"'{name}' is {value}" for name, value in found.items())
        raise hf.contradiction(f"{both}: keep the one with which the model was trained")
    return next(iter(found.values()), longest)


def _require_order(rule: Keys) -> None:
    low, high = rule.number("low_freq_factor"), rule.number("high_freq_factor")
    if high <= low:
        raise rule.wrong("high_freq_factor", f"a number above low_freq_factor, {low:g}")


def _yarn(rule: Keys, scaling: dict[str, Any], longest: int) -> dict[str, Any]:
    """Return yarn's rule (2309.00071) with its numbers, as transformers reads them.

    A `factor` of null is the ratio of the lengths. Factors of 0 are those that are left out, and
    the two mscales count only together; upstream would read them otherwise.
    """
    if "factor" not in rule.values:
        raise rule.wrong("factor", "a number above 0")
    numbers = {key: rule.number(key) for key in _MAYBE if rule.has(key)}
    kept = {key: value for key, value in numbers.items() if value or key == "attention_factor"}
    if not {"mscale", "mscale_all_dim"} <= kept.keys():
        kept = {key: value for key, value in kept.items() if not key.startswith("mscale")}
    if rule.has("factor"):
        kept["factor"] = rule.number("factor", above=0)
    kept.setdefault("factor", longest / scaling[ORIGINAL])
    if "truncate" in rule.values:
        kept["truncate"] = rule.flag("truncate")
    return {**{k: v for k, v in scaling.items() if k not in (*_MAYBE, "truncate")}, **kept}


def _limits(scaling: dict[str, Any]) -> tuple[str, ...]:
    """Return what of yarn upstream's `create_sinusoidal_positions_yarn` does not read."""
    usual = yarn_attention(scaling)
    given = scaling.get("attention_factor", usual)
    return (
        *(["takes yarn's attention factor from its factor, this model has another"]
          if not math.isclose(given, usual, rel_tol=1e-6) else []),
        *(["rounds the bounds of yarn's ramp, this model does not"]
          if not scaling.get("truncate", True) else []),
    )  # fmt: skip


def require_factors(rule: Keys, width: int) -> dict[str, Any]:
    """Return LongRoPE's factors, one for every two rotated values."""
    factors = {key: rule.numbers(key, width // 2) for key in ("short_factor", "long_factor")}
    more = ("factor", "attention_factor")
    return factors | {key: rule.number(key, above=0) for key in more if rule.has(key)}
