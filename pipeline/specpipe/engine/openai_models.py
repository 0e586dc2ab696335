"""OpenAI's HTTP API as servers of several engines have it, as clients call it.

A dialect is what one kind of server has beyond OpenAI's own fields. A server names its kind in
`owned_by` of `GET /v1/models`. The fields were read in the sources of TensorRT-LLM
(`tensorrt_llm/serve/openai_protocol.py`, commit 0076e939), Dynamo (`common_ext.rs`, commit
0d98a95c) and vLLM's documentation; TensorRT-LLM refuses every field that it does not have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from specpipe.core.endpoint import DraftLimit, Endpoint, Model, Tensors

_OPENAI = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")
_SAMPLING = ("top_k", "repetition_penalty", "min_tokens")
_PER_REQUEST = "metrics.speculative_decoding"  # vLLM's and specpipe's, in the last object
_PER_CHOICE = "choices.speculative_decoding"  # TensorRT-LLM's


@dataclass(frozen=True)
class Dialect:
    """What one kind of server has beyond OpenAI's API."""

    sampling: tuple[str, ...] = ()  # options that are fields of the same name
    ignores_end: bool = False  # `ignore_eos`
    stop_tokens: str = ""  # the field for end tokens
    tokens_flags: tuple[str, ...] = ()  # fields that ask for the tokens of an answer
    tokens: str = ""  # where they are; empty: answers are in text only
    drafted: str = ""
    accepted: str = ""
    histogram: str = ""
    takes_salt: bool = False  # `cache_salt` for texts; some servers have it for chats only
    limits_drafts: bool = False  # `num_draft_tokens` in a request


DIALECTS: Mapping[str, Dialect] = {
    "specpipe": Dialect(
        _SAMPLING,
        ignores_end=True,
        drafted=f"{_PER_REQUEST}.num_draft_tokens",
        accepted=f"{_PER_REQUEST}.num_accepted_draft_tokens",
        histogram=f"{_PER_REQUEST}.acceptance_histogram",
        takes_salt=True,
        limits_drafts=True,
    ),
    "tensorrt_llm": Dialect(
        _SAMPLING,
        ignores_end=True,
        stop_tokens="stop_token_ids",
        tokens_flags=("detokenize=false",),
        tokens="choices.token_ids",
        drafted=f"{_PER_CHOICE}.total_draft_tokens",
        accepted=f"{_PER_CHOICE}.total_accepted_draft_tokens",
    ),
    "nvidia": Dialect(_SAMPLING, ignores_end=True),  # Dynamo, which passes no counts of drafts on
    "vllm": Dialect(
        _SAMPLING,
        ignores_end=True,
        stop_tokens="stop_token_ids",
        tokens_flags=("return_token_ids",),
        tokens="choices.token_ids",
        drafted=f"{_PER_REQUEST}.num_draft_tokens",
        accepted=f"{_PER_REQUEST}.num_accepted_draft_tokens",
        histogram=f"{_PER_REQUEST}.acceptance_histogram",
        takes_salt=True,
    ),
}
PLAIN = Dialect()  # of a server that is not in the table
_MOST = 64  # limit on `num_draft_tokens` where the server does not tell its own


def openai_endpoint(owner: str, names: Sequence[str], *, speculates: bool = True) -> Endpoint:
    """Return the endpoint of a server; `owner` and `names` are those of `GET /v1/models`.

    A conversation is rendered by the server. Whether its model has a chat template is not known
    beforehand.
    """
    dialect = DIALECTS.get(owner, PLAIN)
    limits = speculates and dialect.limits_drafts
    text = Model(
        names[0],
        _tensors(dialect),
        batched=False,
        speculates=speculates,
        draft_limit=DraftLimit("parameter", _MOST, any_number=True) if limits else None,
        takes_cache_salt=dialect.takes_salt,
    )
    texts = tuple(replace(text, name=name) for name in names)
    tokens = replace(text, tensors=_token_tensors(dialect)) if dialect.tokens else None
    return Endpoint(texts, tokens, chats=True, api="openai")


def _tensors(dialect: Dialect) -> Tensors:
    options = {name: name for name in (*_OPENAI, *dialect.sampling)}
    ends = {"end_id": "ignore_eos"} if dialect.ignores_end else {}
    return Tensors(
        prompt="prompt",
        chat="messages",
        max_tokens="max_tokens",
        stream="stream",
        exclude_prompt="",
        answer="choices.text",
        options={**options, **ends, "stop_words": "stop"},
        drafted=dialect.drafted,
        accepted=dialect.accepted,
        histogram=dialect.histogram,
        output_tokens="usage.completion_tokens",
        prompt_tokens="usage.prompt_tokens",
        finish_reason="choices.finish_reason",
    )


def _token_tensors(dialect: Dialect) -> Tensors:
    return replace(
        _tensors(dialect),
        chat="",
        answer=dialect.tokens,
        flags=dialect.tokens_flags,
        stop_tokens=dialect.stop_tokens,
    )
