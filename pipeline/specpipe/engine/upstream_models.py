"""The Triton models of NVIDIA's `tensorrtllm_backend`, as clients call them.

`tensorrt_llm_bls` and `ensemble` take text, `tensorrt_llm` takes tokens. The text models are
specpipe's own: they declare the tensors of the newest release in addition to those of the run's
release. `tensorrt_llm` has the tensors of the run's release.
"""

from collections.abc import Mapping
from dataclasses import replace

from specpipe.core.endpoint import Carrier, DraftLimit, Endpoint, Model, Tensors

_FLAGS = ("return_perf_metrics", "return_num_output_tokens")
_TEXT_FLAGS = (*_FLAGS, "return_num_input_tokens", "return_finish_reason")
_SAMPLING = {
    name: name
    for name in (
        "temperature",
        "top_k",
        "top_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "min_tokens",
        "seed",
        "end_id",
    )
}

TEXT = Tensors(
    prompt="text_input",
    chat="chat",
    max_tokens="max_tokens",
    stream="stream",
    exclude_prompt="exclude_input_in_output",
    answer="text_output",
    options={**_SAMPLING, "stop_words": "stop_words", "bad_words": "bad_words"},
    flags=_TEXT_FLAGS,
    drafted="total_draft_tokens",
    accepted="total_accepted_draft_tokens",
    output_tokens="num_output_tokens",
    prompt_tokens="num_input_tokens",
    finish_reason="finish_reason",
    histogram="acceptance_histogram",
)
TOKENS = Tensors(
    prompt="input_ids",
    prompt_length="input_lengths",
    max_tokens="request_output_len",
    stream="streaming",
    exclude_prompt="exclude_input_in_output",
    answer="output_ids",
    stop_tokens="stop_words_list",
    options={**_SAMPLING, "top_k": "runtime_top_k", "top_p": "runtime_top_p"},
    flags=_FLAGS,
    drafted="total_draft_tokens",
    accepted="total_accepted_draft_tokens",
    output_tokens="num_output_tokens",
    log_probs_flag="return_log_probs",
    log_probs="output_log_probs",
)
UPSTREAMS_TEXT = replace(  # without specpipe's own tensors
    TEXT, chat="", flags=(*_FLAGS, "return_num_input_tokens"), finish_reason="", histogram=""
)
_OLD_OPTIONS = {**TOKENS.options, "min_tokens": "min_length", "seed": "random_seed"}  # before 0.20
TOKENIZER = "preprocessing/1/tokenizer"
_CARRIERS: Mapping[str, Carrier] = {"tensorrt_llm_bls": "tensor", "ensemble": "parameter"}


def tokens_of(release: str) -> Tensors:
    """Return the tensors of `tensorrt_llm` in a release of TensorRT-LLM."""
    version = _version(release)
    if version >= (0, 20):
        return TOKENS
    flags: tuple[str, ...] = ("return_perf_metrics",)
    old = replace(TOKENS, options=_OLD_OPTIONS, flags=flags, output_tokens="")
    return old if version == (0, 19) else replace(old, flags=(), drafted="", accepted="")


def follows_guides(release: str) -> bool:
    """Tell whether Triton's `tensorrt_llm` has the parameters of guided decoding in a release."""
    return _version(release) >= (0, 19)


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".")[:2])


def with_guides(model: Model) -> Model:
    """Return a model that takes guides; all models declare their tensors, and most refuse them."""
    kind, text = "guided_decoding_guide_type", "guided_decoding_guide"
    return replace(model, tensors=replace(model.tensors, guide_kind=kind, guide=text))


def upstream_endpoint(tokens: Model, limit: DraftLimit | None, *, streams: bool) -> Endpoint:
    """Return the endpoint of text models over `tokens`.

    `limit` is the limit of draft tokens that a text request can set. `tensorrt_llm_bls` takes it as
    a tensor, as in `tensorrtllm_backend`. `ensemble` has no such tensor there and takes it as a
    request parameter.
    """
    texts = tuple(
        Model(
            name=name,
            tensors=TEXT,
            decoupled=streams,
            speculates=tokens.speculates or limit is not None,
            draft_limit=replace(limit, carrier=carrier) if limit else None,
            fits_max_tokens=True,
            counts_every_response=True,
            takes_cache_salt=tokens.takes_cache_salt,
        )
        for name, carrier in _CARRIERS.items()
    )
    return Endpoint(texts, tokens, TOKENIZER)
