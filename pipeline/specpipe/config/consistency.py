"""Refuses keys of one file that contradict each other, with the line of one of them.

Not here: the values that a single key takes; its field states them.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from specpipe.config.drafting import check_drafting
from specpipe.config.speculation import Hybrid, Lookahead, PromptLookup
from specpipe.config.tree import is_open
from specpipe.config.yaml_nodes import Place

if TYPE_CHECKING:
    from specpipe.config.run_config import RunConfig


def check_consistency(config: "RunConfig", places: Mapping[str, Place]) -> None:
    """Raise ConfigError for the first contradiction."""
    _check_lengths(config, places)
    _check_batching(config, places)
    _check_ngrams(config, places)
    _check_lookahead(config, places)
    _check_training(config, places)
    _check_hybrid(config, places)
    check_drafting(config.speculation, places)
    _check_baseline(config, places)


def _check_lengths(config: "RunConfig", places: Mapping[str, Place]) -> None:
    engine = config.engine
    if engine.max_input_len >= engine.max_seq_len:
        place = places.get("engine.max_input_len") or places["engine"]
        raise place.error(
            f"'engine.max_input_len' is {engine.max_input_len}: must be below "
            f"engine.max_seq_len, which is {engine.max_seq_len} and holds prompt and output"
        )
    drafted = config.speculation.num_draft_tokens
    if not is_open(config.speculation) and drafted + 1 >= engine.max_seq_len:
        keys = ("speculation.num_draft_tokens", "speculation.tree", "speculation")
        place = next((places[key] for key in keys if key in places), places["engine.max_seq_len"])
        raise place.error(
            f"'speculation' drafts {drafted} tokens a step: must be below "
            f"engine.max_seq_len - 1 ({engine.max_seq_len - 1})"
        )


def _check_batching(config: "RunConfig", places: Mapping[str, Place]) -> None:
    engine, drafted = config.engine, config.speculation.num_draft_tokens
    for key in ("kv_cache_tokens", "max_num_tokens", "prefix_cache", "batch_invariant"):
        place = places.get(f"engine.{key}")
        if place and not engine.traits.own_engine:
            raise place.error(
                f"'engine.{key}' is for backend openvino; backend {engine.backend} ignores it",
                hint="remove the key",
            )
    if engine.kv_cache_tokens is not None and engine.kv_cache_tokens < engine.max_seq_len:
        raise places["engine.kv_cache_tokens"].error(
            f"'engine.kv_cache_tokens' is {engine.kv_cache_tokens}: must be at least "
            f"engine.max_seq_len, which is {engine.max_seq_len}"
        )
    if not is_open(config.speculation) and config.max_num_tokens <= drafted:
        raise places["engine.max_num_tokens"].error(
            f"'engine.max_num_tokens' is {config.max_num_tokens}: must be above the {drafted} "
            "tokens that 'speculation' drafts a step"
        )


def _check_ngrams(config: "RunConfig", places: Mapping[str, Place]) -> None:
    options = config.speculation
    if isinstance(options, PromptLookup | Hybrid):
        low, high = options.min_matching_ngram_size, options.max_matching_ngram_size
        if low > high:
            place = places.get("speculation.min_matching_ngram_size") or places["speculation"]
            raise place.error(
                f"'speculation.min_matching_ngram_size' is {low}: must not be above "
                f"max_matching_ngram_size, which is {high}"
            )


def _check_lookahead(config: "RunConfig", places: Mapping[str, Place]) -> None:
    options = config.speculation
    if not isinstance(options, Lookahead) or options.ngram_size > 1:
        return
    if (options.window_size, options.verification_set_size) != (1, 0):
        raise places["speculation.ngram_size"].error(
            "'speculation.ngram_size' is 1, which is plain decoding: it goes with window_size 1 "
            f"and verification_set_size 0 only, not with {options.window_size} and "
            f"{options.verification_set_size}",
            hint="the smallest window that can find anything is 2, 2, 1",
        )


def _check_hybrid(config: "RunConfig", places: Mapping[str, Place]) -> None:
    options = config.speculation
    if not isinstance(options, Hybrid):
        return
    sources = ("draft", "heads", "redrafter", "eagle3")
    given = [name for name in sources if getattr(options, name) is not None]
    if not given:
        raise places["speculation"].error(
            "method hybrid needs a second source of drafts in addition to prompt lookup",
            hint="give speculation.draft.model, speculation.heads, "
            "speculation.redrafter.drafter or speculation.eagle3.model, or use method: "
            "prompt_lookup",
        )
    if len(given) > 1:
        raise places[f"speculation.{given[1]}"].error(
            f"method hybrid takes speculation.{' or speculation.'.join(given)}, not both"
        )
    place = places.get("speculation.min_confidence")
    if place and options.draft is None:
        raise place.error(
            "'speculation.min_confidence' has no effect without speculation.draft",
            hint="remove the key",
        )
    place = places.get("speculation.tree")
    grower = next((name for name in ("redrafter", "eagle3") if getattr(options, name)), None)
    if place and grower:
        raise place.error(
            f"'speculation.tree' has no effect with speculation.{grower}, which grows one at every "
            "step",
            hint="remove the key",
        )


def _check_baseline(config: "RunConfig", places: Mapping[str, Place]) -> None:
    if config.validate.baseline == "build" and not config.speculation.num_draft_tokens:
        raise places["validate.baseline"].error(
            "'validate.baseline' is build, but this run does not speculate: there is nothing to "
            "compare",
            hint="remove the key",
        )


def _check_training(config: "RunConfig", places: Mapping[str, Place]) -> None:
    train = config.train
    if train.medusa.lora_rank and train.medusa.stage == "medusa1":
        raise places["train.medusa.lora_rank"].error(
            "'train.medusa.lora_rank' is for stage: medusa2; medusa1 does not change the backbone"
        )
    if train.spread_target and train.medusa.stage == "medusa2":
        raise places["train.spread_target"].error(
            "'train.spread_target' is for frozen targets; medusa2 trains the target itself"
        )
    if train.medusa.soft_labels and train.medusa.stage == "medusa2":
        raise places["train.medusa.soft_labels"].error(
            "'train.medusa.soft_labels' is for stage: medusa1; in medusa2 the target changes as it "
            "teaches"
        )
    if train.draft.layers and train.draft.num_layers not in (None, len(train.draft.layers)):
        raise places["train.draft.num_layers"].error(
            f"'train.draft.num_layers' is {train.draft.num_layers}, but 'train.draft.layers' "
            f"lists {len(train.draft.layers)}; give one of them"
        )
    if list(train.draft.layers) != sorted(set(train.draft.layers)):
        raise places["train.draft.layers"].error("'train.draft.layers' must rise, without repeats")
