"""Requests that a text model with upstream's tensors must refuse, and must survive."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.serve.inputs import input_tensors
from specpipe.serve.probe import first_reply

Arrays = Mapping[str, NDArray[Any]]
TIMEOUT_S = 60
PROMPT_TENSOR = "text_input"  # a model whose prompt has this name has the other tensors too


def _texts(*texts: str | bytes) -> NDArray[Any]:
    return np.array([[t if isinstance(t, bytes) else t.encode() for t in texts]], object)


def _whole(number: int) -> NDArray[Any]:
    return np.array([[number]], np.int32)


def _real(number: float) -> NDArray[Any]:
    return np.array([[number]], np.float32)


_FEW = {"max_tokens": _whole(4)}
_ASKED = {**_FEW, PROMPT_TENSOR: _texts("a")}
MALFORMED: Mapping[str, Arrays] = {
    "bad UTF-8": {**_FEW, PROMPT_TENSOR: _texts(b"\xff\xfe\x80")},
    "no text": _FEW,
    "two texts": {**_FEW, PROMPT_TENSOR: _texts("a", "b")},
    "text as a number": {**_FEW, PROMPT_TENSOR: _whole(7)},
    "fractional length": {**_ASKED, "max_tokens": _real(4.5)},
    "negative length": {**_ASKED, "max_tokens": _whole(-4)},
    "negative top_k": {**_ASKED, "top_k": _whole(-3)},
    "negative number of drafts": {**_ASKED, "num_draft_tokens": _whole(-1)},
    "infinite temperature": {**_ASKED, "temperature": _real(math.inf)},
    "penalty that is no number": {**_ASKED, "repetition_penalty": _real(math.nan)},
    "unknown tensor": {**_ASKED, "tensor_of_mine": _whole(1)},
    "50,000 stop words": {**_ASKED, "stop_words": _texts(*["word"] * 50_000)},
    "a bad word of 50,000 words": {**_ASKED, "bad_words": _texts("word " * 50_000)},
    "a prompt of a million words": {**_FEW, PROMPT_TENSOR: _texts("word " * 1_000_000)},
}


def send_malformed(url: str, model: str, name: str) -> str | None:
    """Return the message of the refusal of one of `MALFORMED`; None without an answer in time.

    A server that answers instead of refusing has the message "it was answered".
    """

    def send(connection: Any) -> None:
        connection.async_stream_infer(model, input_tensors(dict(MALFORMED[name])))

    reply = first_reply(url, TIMEOUT_S, send)
    if reply is None:
        return None
    return "it was answered" if reply[1] is None else str(reply[1])
