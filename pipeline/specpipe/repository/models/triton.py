"""The few places where Triton's Python backend API is touched; importable only inside Triton."""

import contextlib
import ctypes
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from specpipe.errors import ConfigError, Unsupported
from specpipe.repository.models.requests import Tensors
from specpipe.repository.models.scheduler import QueueFull

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
log = logging.getLogger("specpipe")


def trim_memory() -> None:
    """Give what start-up allocated and freed back to the kernel, where libc can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def model_folder(args: Mapping[str, str]) -> Path:
    """Return the folder of the running model's version."""
    return Path(args["model_repository"]) / args["model_version"]


def parameters(args: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters of the running model's config.pbtxt."""
    config = json.loads(args["model_config"])
    return {key: value["string_value"] for key, value in config["parameters"].items()}


def is_decoupled(args: Mapping[str, str]) -> bool:
    """Tell whether the running model may send several responses to a request."""
    policy = json.loads(args["model_config"]).get("model_transaction_policy", {})
    return bool(policy.get("decoupled", False))


def input_tensors(request: Any) -> Tensors:
    """Return a request's inputs by name."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def request_parameters(request: Any) -> dict[str, Any]:
    """Return the parameters that a client or another model sent with a request."""
    values: dict[str, Any] = json.loads(request.parameters() or "{}")
    return values


def response(outputs: Mapping[str, NDArray[Any]]) -> Any:
    """Return a response with these tensors."""
    return pb_utils.InferenceResponse([pb_utils.Tensor(n, a) for n, a in outputs.items()])


def text_tensor(text: str) -> NDArray[Any]:
    """Return the [1] BYTES array of one text."""
    return np.array([text.encode()], object)


SPELL_CODE = "spell_error_code"  # request parameter: begin an error's message with its code


def error_response(error: Exception, request: Any = None) -> Any:
    """Return the response that tells a client what was wrong, in one sentence.

    Between two models Triton 2.51 loses the code of an error, so a model that calls another asks
    for it to be spelled out in the message.
    """
    name, message = _code(error), _message(error)
    if request is not None and request_parameters(request).get(SPELL_CODE):
        message = f"{name}: {message}"
    code = getattr(pb_utils.TritonError, name)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def _code(error: Exception) -> str:
    codes = {
        ConfigError: "INVALID_ARG",
        Unsupported: "UNSUPPORTED",
        QueueFull: "UNAVAILABLE",
        Cancelled: "CANCELLED",
    }
    if isinstance(error, InnerError):
        return error.code
    return next((code for kind, code in codes.items() if isinstance(error, kind)), "INTERNAL")


def _message(error: Exception) -> str:
    if _code(error) == "INTERNAL":
        log.error("unexpected error", exc_info=error)
        return f"internal error: {type(error).__name__}: {error}"
    return str(error)


class Cancelled(Exception):
    """Nobody waits for the answer any more."""

    def __str__(self) -> str:
        return "the request was cancelled"


class InnerError(Exception):
    """An error of a model that this one called, to be handed on as it is."""

    def __init__(self, message: str) -> None:
        code, _, sentence = message.partition(": ")
        spelled = code in ("INVALID_ARG", "UNSUPPORTED", "UNAVAILABLE", "CANCELLED", "INTERNAL")
        self.code = code if spelled else "INTERNAL"
        super().__init__(sentence if spelled else message)
