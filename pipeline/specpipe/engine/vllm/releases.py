"""The releases of vLLM, from `releases.json`: methods, fields of SpeculativeConfig, architectures.

`source` of a release names the files that its entries were read in.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class VllmRelease:
    """What one release of vLLM takes."""

    name: str
    source: str
    image: str  # with the OpenAI server
    methods: Mapping[str, str]  # method of a run -> `method` of SpeculativeConfig
    speculative_fields: frozenset[str]  # that users may set
    architectures: frozenset[str]  # that answer in text


@cache
def releases() -> Mapping[str, VllmRelease]:
    """Return every release by its name, the default one first."""
    text = Path(__file__).with_name("releases.json").read_text(encoding="utf-8")
    return {
        name: VllmRelease(
            name,
            values["source"],
            values["image"],
            values["methods"],
            frozenset(values["speculative_fields"]),
            frozenset(values["architectures"]),
        )
        for name, values in json.loads(text).items()
    }


def default_release() -> VllmRelease:
    """Return the release that runs use."""
    return next(iter(releases().values()))
