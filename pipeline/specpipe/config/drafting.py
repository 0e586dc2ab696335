"""Checks of the options with which TensorRT-LLM's LLM API drafts, as its records check them.

The rules are those of `DecodingBaseConfig` (llm_args.py).
"""

from collections.abc import Mapping
from itertools import pairwise

from specpipe.config.speculation import InGraph, Speculation
from specpipe.config.upstream_methods import SuffixAutomaton
from specpipe.config.yaml_nodes import Place

_SECTION = "speculation"


def check_drafting(options: Speculation, places: Mapping[str, Place]) -> None:
    """Raise ConfigError for a schedule or a way of sampling that upstream refuses."""
    if not isinstance(options, InGraph):
        return
    _check_schedule(options, places)
    if isinstance(options, SuffixAutomaton):
        return
    sampled = options.use_rejection_sampling
    if sampled and getattr(options, "sa_config", None) is not None:
        raise places[f"{_SECTION}.use_rejection_sampling"].error(
            "'speculation.use_rejection_sampling' and 'speculation.sa_config' exclude each other: "
            "an automaton's drafts have no probabilities",
            hint="remove one of them",
        )


def _check_schedule(options: InGraph, places: Mapping[str, Place]) -> None:
    schedule = options.draft_len_schedule
    if schedule is None:
        return
    place, most = places[f"{_SECTION}.draft_len_schedule"], options.num_draft_tokens
    if options.max_concurrency is not None:
        raise place.error(
            "'speculation.draft_len_schedule' and 'speculation.max_concurrency' exclude each other",
            hint="the schedule {1: N, M: 0} drafts nothing from M sequences on",
        )
    sizes = [int(size) if size.isdecimal() else 0 for size in schedule]
    if not sizes or min(sizes) < 1 or any(a >= b for a, b in pairwise(sizes)):
        raise place.error(
            "'speculation.draft_len_schedule' must map batch sizes from 1 up, in rising order, to "
            "numbers of draft tokens"
        )
    lengths = list(schedule.values())
    if lengths[0] != most or not all(0 <= length <= most for length in lengths):
        raise place.error(
            f"'speculation.draft_len_schedule' must begin with the {most} draft tokens of the "
            "method, and have no more of them later"
        )
