"""From logits to the distribution that a request specifies, at one position with its history.

The order is that of transformers and TensorRT-LLM: penalties and bans on the logits, then
temperature, top_k, top_p.
"""

import math
from collections.abc import Sequence

import numpy as np

from specpipe.core.contracts import Floats, Ints, Logits, Sampling
from specpipe.core.errors import ConfigError
from specpipe.speculate.history import Completions, History
from specpipe.speculate.selection import Scale, top_k, top_p, weights_of

# Bounds of request options: name, least, most, and their wording in errors. Within the bounds the
# arithmetic on logits stays finite in float32, for any number of repetitions in a sequence.
_BOUNDS = (
    ("temperature", 0.0, math.inf, "at least 0"),
    ("top_k", 0, math.inf, "at least 0 (0: no limit)"),
    ("top_p", 0.0, 1.0, "above 0 and at most 1"),
    ("repetition_penalty", 1e-3, 1e3, "from 0.001 to 1000 (1: none)"),
    ("presence_penalty", -1e6, 1e6, "from -1000000 to 1000000 (0: none)"),
    ("frequency_penalty", -1e6, 1e6, "from -1000000 to 1000000 (0: none)"),
    ("min_tokens", 0, math.inf, "at least 0"),
)
_LEAST_TEMPERATURE = 1e-10


def check_sampling(options: Sampling, vocab_size: int) -> None:
    """Raise ConfigError naming the first value that makes no sense, or that would overflow."""
    for name, least, most, words in _BOUNDS:
        value = getattr(options, name)
        if not math.isfinite(value):
            raise ConfigError(f"{name} is {value}: must be a finite number")
        _require(least <= value <= most, name, value, words)
    _require(options.top_p > 0, "top_p", options.top_p, "above 0 and at most 1")
    _require(
        options.temperature == 0 or options.temperature >= _LEAST_TEMPERATURE,
        "temperature",
        options.temperature,
        f"0 (greedy) or at least {_LEAST_TEMPERATURE}",
    )
    for end_id in options.end_ids:
        _require(
            0 <= end_id < vocab_size, "end_id", end_id, f"-1 (none) or a token below {vocab_size}"
        )
    for word in options.bad_words:
        _require(
            all(0 <= t < vocab_size for t in word),
            "bad_words",
            word,
            f"tokens from 0 to {vocab_size - 1}",
        )


def _require(ok: bool, name: str, value: object, words: str) -> None:
    if not ok:
        raise ConfigError(f"{name} is {value}: must be {words}")


class Adjustment:
    """The penalties and bans of one request, made ready for many positions."""

    def __init__(self, options: Sampling) -> None:
        self.options = options
        self._bad_words = Completions(options.bad_words)

    def __call__(self, logits: Logits, history: Sequence[int], generated: int) -> Logits:
        """Apply penalties and bans to `logits` [V]; returns the same array if there are none.

        `history` is the prompt and all output before this position, `generated` how many of its
        tokens are output. Raises ConfigError if no token is left.
        """
        before = History.of(history)
        changed = _penalise(logits, self.options, before)
        banned = self._bad_words.after(before) if self._bad_words else []
        if generated < self.options.min_tokens and self.options.end_ids:
            banned.append(np.array(self.options.end_ids, np.int64))
        if banned:
            changed = changed.copy() if changed is logits else changed
            changed[np.concatenate(banned)] = -np.inf
            if changed.max() == -np.inf:
                raise ConfigError("bad_words and min_tokens ban every token of the vocabulary")
        return changed


def adjust(logits: Logits, options: Sampling, history: Sequence[int], generated: int) -> Logits:
    """Apply the penalties and bans of `options` at one position; see `Adjustment`."""
    return Adjustment(options)(logits, history, generated)


def _penalise(logits: Logits, options: Sampling, history: History) -> Logits:
    repetition, presence = options.repetition_penalty, options.presence_penalty
    frequency = options.frequency_penalty
    if repetition == 1 and presence == 0 and frequency == 0:
        return logits
    seen, counts = history.counted()
    values = logits[seen]
    values = np.where(values > 0, values / repetition, values * repetition)
    out = logits.copy()
    out[seen] = values - presence - frequency * counts
    return out


def distribution(logits: Logits, options: Sampling) -> Floats:
    """Return the distribution [V] of already adjusted `logits` under temperature, top_k, top_p.

    Greedy options give the one-hot distribution of the first most likely token.
    """
    places, weights = candidates(logits, options)
    weights /= weights.sum()
    if places is None:
        return weights
    probs = np.zeros(len(logits))
    probs[places] = weights
    return probs


def candidates(logits: Logits, options: Sampling) -> tuple[Ints | None, Floats]:
    """Return the possible tokens, ascending (None: all), and their probabilities up to a factor."""
    if options.greedy:
        return np.array([np.argmax(logits)]), np.ones(1)
    kept = top_k(logits, options.top_k) if 0 < options.top_k < len(logits) else None
    values = logits if kept is None else logits[kept]
    if options.top_p == 1:
        return kept, weights_of(values, options.temperature)
    places, weights = top_p(values, options.temperature, options.top_p)
    order = np.argsort(places)
    places = places[order]
    return places if kept is None else kept[places], weights[order]


def log_probability(logits: Logits, token: int) -> float:
    """Return the model's own log-probability of `token`, before any penalty or temperature.

    The weights are summed in float64 and computed in float32: off by at most 1e-5.
    """
    return _own_log_probability(logits, [token])[0]


def top_log_probabilities(logits: Logits, count: int) -> tuple[tuple[int, float], ...]:
    """Return the `count` likeliest tokens with their `log_probability`, likeliest first."""
    places = top_k(logits, count) if count < len(logits) else np.arange(len(logits))
    order = places[np.argsort(-logits[places], kind="stable")].tolist()
    return tuple(zip(order, _own_log_probability(logits, order), strict=True))


def _own_log_probability(logits: Logits, tokens: Sequence[int]) -> list[float]:
    scale = Scale.of(logits, 1.0)
    whole = math.log(float(scale.rough(logits).sum(dtype=np.float64)))
    return [float(logits[token]) - scale.peak - whole for token in tokens]
