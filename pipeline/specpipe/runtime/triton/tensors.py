"""Convert calls to upstream's tensors and back, with the names of a release. No Triton here."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.core.contracts import Sampling
from specpipe.runtime.calls import Call, Reply
from specpipe.runtime.triton import guides
from specpipe.runtime.triton.requests import Tensors, word_layout
from specpipe.runtime.triton.upstream_rules import OFF

Arrays = dict[str, NDArray[Any]]

_OLD_NAMES = {"min_tokens": "min_length", "seed": "random_seed"}  # before TensorRT-LLM 0.20
_OLD_TABLES = ("018", "019")
_NO_METRICS = ("018",)


def call_tensors(call: Call, table: str, padded_vocab_size: int, *, stream: bool) -> Arrays:
    """Return the inputs of `tensorrt_llm` for a call, with their batch dimension of 1."""
    tensors: Arrays = {
        "input_ids": np.array([call.prompt], np.int32),
        "input_lengths": _one(len(call.prompt), np.int32),
        "request_output_len": _one(call.max_tokens, np.int32),
        "exclude_input_in_output": _one(True, np.bool_),
        "streaming": _one(stream, np.bool_),
        **_sampling(call.sampling),
        **_draft(call),
        **_guide(call),
    }
    if call.bias:
        tensors["embedding_bias"] = _bias(call, padded_vocab_size)
    if call.log_probs:
        tensors["return_log_probs"] = _one(True, np.bool_)
    if call.wants_logits:
        tensors["return_generation_logits"] = _one(True, np.bool_)
    if call.wants_acceptance and table not in _NO_METRICS:
        tensors["return_perf_metrics"] = _one(True, np.bool_)
    if not call.speculates:
        tensors |= {name: _one(value, np.int32) for name, value in OFF.items()}
    if table in _OLD_TABLES:
        return {_OLD_NAMES.get(name, name): array for name, array in tensors.items()}
    return tensors


def newest_names(tensors: Tensors) -> Tensors:
    """Return a client's tensors by the names of the newest release."""
    new = {old: name for name, old in _OLD_NAMES.items()}
    return {new.get(name, name): array for name, array in tensors.items()}


def read_reply(outputs: Mapping[str, NDArray[Any]]) -> Reply:
    """Return the new tokens of a response, whose call excluded the prompt."""
    row = outputs["output_ids"].reshape(-1)
    count = min(len(row), int(outputs["sequence_length"].reshape(-1)[0]))
    scores = outputs.get("output_log_probs")
    logits = outputs.get("generation_logits")
    return Reply(
        tokens=tuple(int(token) for token in row[:count]),
        log_probs=() if scores is None else newest_scores(scores, count),
        logits=None if logits is None else logits.reshape(-1, logits.shape[-1])[:count],
        drafted=_whole(outputs, "total_draft_tokens"),
        accepted=_whole(outputs, "total_accepted_draft_tokens"),
    )


def _sampling(options: Sampling) -> Arrays:
    """Return only the values that differ from upstream's defaults; greedy is `runtime_top_k` 1."""
    tensors: Arrays = {"seed": _one(options.seed, np.uint64)}
    if options.greedy:
        tensors["runtime_top_k"] = _one(1, np.int32)
    else:
        tensors["runtime_top_k"] = _one(options.top_k, np.int32)
        tensors["runtime_top_p"] = _one(options.top_p, np.float32)
        tensors["temperature"] = _one(options.temperature, np.float32)
    for name, plain in (
        ("repetition_penalty", 1.0),
        ("presence_penalty", 0.0),
        ("frequency_penalty", 0.0),
    ):
        value = getattr(options, name)
        if value != plain:
            tensors[name] = _one(value, np.float32)
    if options.min_tokens:
        tensors["min_tokens"] = _one(options.min_tokens, np.int32)
    if options.end_ids:
        tensors["end_id"] = _one(options.end_ids[0], np.int32)
        tensors["pad_id"] = _one(options.end_ids[0], np.int32)
    if options.end_ids[1:]:  # `end_id` takes one token only
        tensors["stop_words_list"] = word_layout(tuple((end,) for end in options.end_ids[1:]))
    if options.bad_words:
        tensors["bad_words_list"] = word_layout(options.bad_words)
    return tensors


def _draft(call: Call) -> Arrays:
    tensors: Arrays = {}
    if call.draft:
        tensors["draft_input_ids"] = np.array([call.draft], np.int32)
    if call.draft_logits is not None:
        tensors["draft_logits"] = call.draft_logits[None].astype(np.float32)
    return tensors


def _guide(call: Call) -> Arrays:
    if call.guide is None:
        return {}
    given = {guides.KIND: call.guide.kind, guides.TEXT: call.guide.text}
    return {name: _one(text.encode(), np.object_) for name, text in given.items() if text}


def _bias(call: Call, size: int) -> NDArray[np.float32]:
    bias = np.zeros((1, size), np.float32)
    for token, amount in call.bias:
        bias[0, token] += amount
    return bias


def _one(value: Any, kind: type) -> NDArray[Any]:
    return np.array([[value]], kind)


def _whole(outputs: Mapping[str, NDArray[Any]], name: str) -> int:
    array = outputs.get(name)
    return 0 if array is None or array.size == 0 else int(array.reshape(-1)[0])


def newest_scores(scores: NDArray[Any], count: int) -> tuple[float, ...]:
    """Return the scores of the new tokens: a response has those of all tokens so far.

    See `GenericLlmRequest::createResponse` in TensorRT-LLM's llmRequest.h.
    """
    flat = scores.reshape(-1)
    return tuple(float(score) for score in flat[max(0, len(flat) - count) :])
