"""The rules of Triton's C++ backend of TensorRT-LLM for requests, for the models that replace it
on CPUs. Independent of Triton.

Sources: `createRequestsFromInputTensors` and `getOutputConfigFromTensors` in that backend's
utils.cc. It ignores the request parameters of specpipe.
"""

from collections.abc import Mapping
from typing import Any

from specpipe.core.endpoint import Carrier
from specpipe.core.errors import Unsupported
from specpipe.runtime.failures import EngineError
from specpipe.runtime.triton.requests import Tensors, draft_limit, flag, whole

OFF = {  # the sizes of lookahead decoding that mean plain decoding
    "lookahead_window_size": 1,
    "lookahead_ngram_size": 1,
    "lookahead_verification_set_size": 0,
}


def check_streaming(tensors: Tensors, *, decoupled: bool) -> None:
    """Raise the backend's error for a stream from a model with one response a request."""
    if flag(tensors, "streaming") and not decoupled:
        raise EngineError(
            "INTERNAL", "Streaming is only supported if model is deployed using decoupled mode."
        )


def check_draft(draft: tuple[int, ...], most: int) -> None:
    """Raise the backend's error for a longer draft than the engine was built for."""
    if len(draft) > most:
        raise EngineError(
            "INTERNAL",
            f"Number of draft tokens ({len(draft)}) is larger than maximum number of draft tokens "
            f"({most})",
        )


def echo(tensors: Tensors, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """Return what an answer begins with: the prompt, unless it is streamed or excluded."""
    silent = flag(tensors, "streaming") or flag(tensors, "exclude_input_in_output")
    return () if silent else prompt


def asked_limit(
    tensors: Tensors, parameters: Mapping[str, Any], carrier: Carrier | None
) -> int | None:
    """Return how many draft tokens a request asks for, if the model takes that by `carrier`.

    What comes by another way is ignored, as the backend ignores it; None: nothing is asked for.
    Raises Unsupported for sizes of lookahead decoding that are neither left out nor `OFF`.
    """
    if carrier == "parameter":
        return draft_limit(tensors, parameters)
    sizes = {name: whole(tensors, name) for name in OFF}
    if all(size is None for size in sizes.values()):
        return None
    if carrier != "lookahead":
        raise EngineError(
            "INTERNAL",
            "Cannot set the request lookahead decoding configuration when model instance lookahead "
            "parameters are not set.",
        )
    if sizes != OFF:
        raise Unsupported(f"lookahead sizes {list(sizes.values())}: only 1, 1, 0 are supported")
    return 0
