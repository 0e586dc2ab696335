"""Compares the drafters of a run with its models: were they trained for these weights?"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from specpipe.checkpoint.belonging import TARGET, Mark, compare, read_mark
from specpipe.checkpoint.source import Source
from specpipe.config.run_config import RunConfig
from specpipe.core.errors import Rejection
from specpipe.plan.resolve import Resolved


@dataclass(frozen=True)
class Strangers:
    """Drafters that were trained for other models than those of the run."""

    rejections: tuple[Rejection, ...]
    notes: tuple[str, ...]


def find_strangers(config: RunConfig, found: Resolved) -> Strangers:
    """Return the drafters of a run whose mark names other weights; only files here are read."""
    verdicts = [compare(*given) for given in _marked(config, found)]
    return Strangers(
        tuple(v for v in verdicts if isinstance(v, Rejection)),
        tuple(v for v in verdicts if isinstance(v, str)),
    )


def _marked(
    config: RunConfig, found: Resolved
) -> Iterator[tuple[Mark, tuple[Path, ...], str, str]]:
    """Yield the mark of every drafter, the weights of its target, its name, and its key."""
    for role, own in found.drafters.items():
        source, mark = found.sources[role], read_mark(own.weights)
        if mark and source and not source.missing:
            yield mark, source.weights, str(own.path), config.drafter_key(role)
    target, draft = found.sources["target"], found.sources.get("draft")
    if draft and target and not target.missing and isinstance(_trained_for(draft), str):
        mark = Mark(str(_trained_for(draft)))
        yield mark, target.weights, str(draft.path), config.model_key("draft")


def _trained_for(draft: Source) -> object:
    return draft.hf_config.get(TARGET) or None
