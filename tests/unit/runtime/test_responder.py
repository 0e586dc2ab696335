"""Answers to one request: complete once, and untouched afterwards."""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from specpipe.core.errors import ConfigError
from specpipe.runtime.failures import read_message

FINAL = 1


class Sender:
    """Triton's response sender: using it after the final response ends tritonserver."""

    def __init__(self) -> None:
        self.flags: list[int] = []
        self.errors: list = []

    def _require_open(self) -> None:
        assert FINAL not in self.flags, "used after the final response"

    def send(self, answer: object = None, flags: int = 0) -> None:
        self._require_open()
        self.flags.append(flags)
        self.errors += [answer] if isinstance(answer, Error) else []

    def is_cancelled(self) -> bool:
        self._require_open()
        return True


class Error:
    """Triton's error: a message and a code."""

    INVALID_ARG, INTERNAL = 3, 13

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Return the module that only Triton can import, with a mock of Triton's own."""
    backend = ModuleType("triton_python_backend_utils")
    backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL  # type: ignore[attr-defined]
    backend.Tensor = lambda name, array: (name, array)  # type: ignore[attr-defined]
    backend.InferenceResponse = lambda tensors=(), error=None: error  # type: ignore[attr-defined]
    backend.TritonError = Error  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    name = "specpipe.runtime.triton.api"
    sys.modules.pop(name, None)
    yield importlib.import_module(name)
    sys.modules.pop(name)


def test_an_answer_ends_once_whatever_follows(triton: ModuleType) -> None:
    sender = Sender()
    responder = triton.TritonResponder(SimpleNamespace(get_response_sender=lambda: sender))
    assert responder.is_cancelled()
    responder.send({"x": np.zeros(1)}, final=False)
    responder.send({"x": np.zeros(1)}, final=True)
    responder.fail(ValueError("late"))
    responder.end()
    assert not responder.is_cancelled()
    assert sender.flags == [0, FINAL]


def test_an_error_ends_the_answer(triton: ModuleType) -> None:
    sender = Sender()
    responder = triton.TritonResponder(SimpleNamespace(get_response_sender=lambda: sender))
    responder.fail(ConfigError("max_tokens is 0: must be at least 1"))
    responder.send({"x": np.zeros(1)}, final=True)
    assert sender.flags == [FINAL]
    assert sender.errors[0].code == Error.INVALID_ARG
    assert sender.errors[0].message == "INVALID_ARG: max_tokens is 0: must be at least 1"


@pytest.mark.parametrize(
    ("message", "read"),
    [
        (
            "INVALID_ARG: max_tokens is 0: at least 1",
            ("INVALID_ARG", "max_tokens is 0: at least 1"),
        ),
        ("max_tokens is 0: must be at least 1", (None, "max_tokens is 0: must be at least 1")),
        ("unknown model", (None, "unknown model")),
    ],
)
def test_code_and_sentence_of_a_message_are_told_apart(message: str, read: tuple) -> None:
    assert read_message(message) == read
