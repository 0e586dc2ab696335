"""All uses of Triton's Python backend API; importable only inside Triton."""

import contextlib
import ctypes
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from specpipe.runtime.failures import describe, spell
from specpipe.runtime.triton.requests import Tensors
from specpipe.runtime.triton.sources import WATCH_SECONDS

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def trim_memory() -> None:
    """Return freed memory of the start-up to the kernel, if libc supports it."""
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


class TritonResponder:
    """The receiver of the responses to one request; usable from several threads.

    Triton frees what is behind a response sender with the final response, and tritonserver 2.51
    itself crashes if the sender is used after that. So nothing is sent or asked then.

    Whether the client is gone is a call into tritonserver, made every `WATCH_SECONDS` at most.
    """

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self._lock = threading.Lock()
        self._done = False
        self._gone = False
        self._watched_at = 0.0

    def is_cancelled(self) -> bool:
        """Tell whether the client has disconnected; false after the answer is complete.

        Triton is asked at most once per WATCH_SECONDS.
        """
        now = time.monotonic()
        if now - self._watched_at < WATCH_SECONDS:
            return self._gone and not self._done
        self._watched_at = now
        with self._lock:
            self._gone = not self._done and bool(self._sender.is_cancelled())
            return self._gone

    def send(self, outputs: Mapping[str, NDArray[Any]], *, final: bool) -> None:
        """Send a response with these tensors."""
        self._send(response(outputs), final=final)

    def fail(self, error: Exception) -> None:
        """End the answer with an error."""
        self._send(error_response(error), final=True)

    def end(self) -> None:
        """End the answer without a further response."""
        self._send(None, final=True)

    def _send(self, answer: Any, *, final: bool) -> None:
        flags = FINAL if final else 0
        with self._lock:
            if self._done:
                return
            self._done = final
            if answer is None:
                self._sender.send(flags=flags)
            else:
                self._sender.send(answer, flags=flags)


def error_response(error: Exception) -> Any:
    """Return an error response: a code and one sentence."""
    code, sentence = describe(error)
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError(spell(code, sentence), getattr(pb_utils.TritonError, code))
    )
