"""What a request asks, as Triton's input tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype

from specpipe.repository.models.requests import word_layout

Arrays = dict[str, NDArray[Any]]


_RETURNS = ("return_perf_metrics", "return_num_output_tokens")


@dataclass(frozen=True)
class Options:
    """What a request may ask for, by upstream's tensor names; None leaves it to the server."""

    max_tokens: int = 64
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
    num_draft_tokens: int | None = None  # only on tensorrt_llm_bls


def text_inputs(text: str, options: Options, *, stream: bool) -> Arrays:
    """Return the inputs of a model that takes text; one request, so every array begins [1]."""
    inputs: Arrays = {
        "text_input": np.array([[text.encode()]], object),
        "max_tokens": np.array([[options.max_tokens]], np.int32),
        "stream": np.array([[stream]]),
        "exclude_input_in_output": np.array([[True]]),
        **{name: np.array([[True]]) for name in _RETURNS},
        **_sampling_inputs(options, ""),
    }
    for name in ("stop_words", "bad_words"):
        words = getattr(options, name)
        if words:
            inputs[name] = np.array([[word.encode() for word in words]], object)
    if options.num_draft_tokens is not None:
        inputs["num_draft_tokens"] = np.array([[options.num_draft_tokens]], np.int32)
    return inputs


def token_inputs(prompt: Sequence[int], options: Options) -> Arrays:
    """Return the inputs of a model that takes tokens, which streams one response a step."""
    inputs: Arrays = {
        "input_ids": np.array([prompt], np.int32),
        "input_lengths": np.array([[len(prompt)]], np.int32),
        "request_output_len": np.array([[options.max_tokens]], np.int32),
        "streaming": np.array([[True]]),
        **{name: np.array([[True]]) for name in _RETURNS},
        **_sampling_inputs(options, "runtime_"),
    }
    if options.end_ids:
        inputs["end_id"] = np.array([[options.end_ids[0]]], np.int32)
    if options.end_ids[1:]:
        inputs["stop_words_list"] = word_layout(tuple((end,) for end in options.end_ids[1:]))
    return inputs


def _sampling_inputs(options: Options, prefix: str) -> Arrays:
    names: dict[str, type] = {
        "temperature": np.float32,
        "repetition_penalty": np.float32,
        "presence_penalty": np.float32,
        "frequency_penalty": np.float32,
        "top_k": np.int32,
        "top_p": np.float32,
        "min_tokens": np.int32,
        "seed": np.uint64,
        "end_id": np.int32,
    }
    inputs: Arrays = {}
    for name, kind in names.items():
        value = getattr(options, name)
        if value is not None:
            tensor = f"{prefix}{name}" if name in ("top_k", "top_p") else name
            inputs[tensor] = np.array([[value]], kind)
    return inputs


def input_tensors(arrays: Arrays) -> list[Any]:
    """Return the arrays as what the gRPC client sends."""
    return [_tensor(name, array) for name, array in arrays.items()]


def _tensor(name: str, array: NDArray[Any]) -> Any:
    tensor = grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor
