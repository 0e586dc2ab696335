"""A mock of Triton's Python backend: its models call the models of a `CppBackend` each (BLS)."""

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from types import ModuleType
from typing import Any

import pytest

from tests.helpers.cpp_backend import CppBackend, RefusedError
from tests.helpers.triton_metrics import MetricFamily

INTERNAL = 13


class Tensor:
    """A named array, as Triton's Python backend has it."""

    def __init__(self, name: str, array: Any) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array


class TritonError:
    """An error with a code."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG = 2, INTERNAL, 5, 3
    UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = 14, 12, 6, 1

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Response:
    """Tensors, or an error."""

    def __init__(self, tensors: Mapping[str, Any], error: TritonError | None = None) -> None:
        self._tensors, self._error = tensors, error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def output_tensors(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self._tensors.items()]


class MemoryType(IntEnum):
    CPU, GPU = 0, 2


def python_backend(models: Mapping[str, CppBackend]) -> ModuleType:
    """Return a mock of `triton_python_backend_utils` in a server with these models."""

    class InferenceRequest:
        def __init__(
            self, *, model_name: str, request_id: str, requested_output_names: Sequence[str],
            inputs: Sequence[Tensor], preferred_memory: object,
        ) -> None:  # fmt: skip
            self.model, self.id = models[model_name], request_id
            self.outputs = list(requested_output_names)
            self.inputs = {tensor.name(): tensor.as_numpy() for tensor in inputs}

        def exec(self, decoupled: bool = False) -> Any:
            if self.model.decoupled and not decoupled:
                raise RuntimeError("Model is using the decoupled transaction policy")
            responses = self._responses()
            return responses if decoupled else next(responses)

        def _responses(self) -> Iterator[Response]:
            try:
                for tensors in self.model.infer(self.inputs, self.outputs, self.id):
                    yield Response(tensors)
            except RefusedError as error:
                yield Response({}, TritonError(str(error)))

    module = ModuleType("triton_python_backend_utils")
    for name, value in {
        "InferenceRequest": InferenceRequest,
        "Tensor": Tensor,
        "TritonError": TritonError,
        "MetricFamily": MetricFamily,
        "PreferredMemory": lambda kind, number: None,
        "TRITONSERVER_MEMORY_CPU": MemoryType.CPU,
    }.items():
        setattr(module, name, value)
    return module


def import_sources(models: Mapping[str, CppBackend], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module of the text models' sources, in a server with these models."""
    monkeypatch.setattr(MetricFamily, "made", {})
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", python_backend(models))
    for name in ("bls", "metrics"):
        monkeypatch.delitem(sys.modules, f"specpipe.runtime.triton.{name}", raising=False)
    return importlib.import_module("specpipe.runtime.triton.sources")
