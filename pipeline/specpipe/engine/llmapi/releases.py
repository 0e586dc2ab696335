"""The releases of TensorRT-LLM's LLM API, from `releases.json`: fields, images and fronts.

The file names where every list was read, and what was inferred.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

_FILE = Path(__file__).with_name("releases.json")
# Whether drafts in the target's own graph follow the sampling options of a request: if a flag of
# the config is set, without it, or not at all.
Sampling = Literal["flag", "always", "never"]


@dataclass(frozen=True)
class DraftingRecord:
    """How `speculative_config` of one method is written."""

    decoding_type: str
    fields: frozenset[str]  # all that it accepts, those of every method included
    spelled: Mapping[str, str] = field(default_factory=dict)  # newest name -> the release's own

    def spell(self, name: str) -> str | None:
        """Return a field's name in this release; None if it has no such field."""
        own = self.spelled.get(name, name)
        return own if own in self.fields else None


@dataclass(frozen=True)
class LlmApiRelease:
    """One release."""

    name: str
    image: str  # NVIDIA's release image, with trtllm-serve
    dynamo: str | None  # Dynamo's image that has this release; None: none is known
    fronts: tuple[str, ...]  # what can serve it
    arguments: frozenset[str]  # of `LLM`
    cache_fields: frozenset[str]  # of its `kv_cache_config`
    methods: Mapping[str, DraftingRecord]
    sampling: Sampling
    two_models: tuple[str, ...]  # methods that draft outside the target's graph
    pipeline_speculation: tuple[str, ...]  # methods that may have pipeline stages
    inferred: tuple[str, ...]  # what was not read in the release itself

    @property
    def method_names(self) -> tuple[str, ...]:
        """Return the methods of the release, plain decoding first."""
        return ("none", *self.methods)


def find_release(name: str) -> LlmApiRelease | None:
    """Return a release; None if its LLM API is not known."""
    return releases().get(name)


@cache
def releases() -> Mapping[str, LlmApiRelease]:
    """Return every release by its name, in the order of the file."""
    known = json.loads(_FILE.read_text(encoding="utf-8"))["releases"]
    return {name: _release(name, values) for name, values in known.items()}


def _release(name: str, values: Mapping[str, Any]) -> LlmApiRelease:
    common = frozenset({"decoding_type", *values["base"]})
    return LlmApiRelease(
        name=name,
        image=values["image"],
        dynamo=values["dynamo"],
        fronts=tuple(values["fronts"]),
        arguments=frozenset(values["arguments"]),
        cache_fields=frozenset(values["kv_cache_config"]),
        methods={
            method: DraftingRecord(
                record["type"], common | frozenset(record["fields"]), record.get("spelled", {})
            )
            for method, record in values["methods"].items()
        },
        sampling=values["sampling"],
        two_models=tuple(values["two_models"]),
        pipeline_speculation=tuple(values["pipeline_speculation"]),
        inferred=tuple(values["inferred"]),
    )
