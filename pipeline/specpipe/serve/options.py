"""What a client can ask of an answer, whatever server it calls."""

from dataclasses import dataclass

from specpipe.core.guide import Guide


@dataclass(frozen=True)
class Options:
    """What a request may ask for; None leaves it to the server."""

    max_tokens: int = 64
    fit_max_tokens: bool = False  # cut `max_tokens` to what the engine takes
    count_every_response: bool = False  # every response of a stream has the tokens so far
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: int | None = None
    seed: int | None = None
    end_id: int | None = None
    end_ids: tuple[int, ...] = ()  # any of them ends an answer in tokens; `end_id` takes one
    stop_words: tuple[str, ...] = ()
    bad_words: tuple[str, ...] = ()
    num_draft_tokens: int | None = None  # the most per step; 0: plain decoding
    log_probs: bool = False  # of every new token, from a model that takes tokens
    tops: int = 0  # likeliest tokens at every position, from the same
    cache_salt: str | None = None  # only requests of the same salt share KV blocks of prompts
    guide: Guide | None = None  # what the answer must match
