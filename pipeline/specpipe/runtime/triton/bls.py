"""Call another model of the same server (Triton's business logic scripting)."""

import uuid
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from specpipe.runtime.calls import Call, Reply
from specpipe.runtime.failures import CODES, EngineError, read_message
from specpipe.runtime.triton.tensors import Arrays, call_tensors, read_reply

_OUTPUTS = ("output_ids", "sequence_length")
_METRICS = ("total_draft_tokens", "total_accepted_draft_tokens")


@dataclass(frozen=True)
class TritonEngine:
    """A model with the tensors of `tensorrt_llm`, to be called while a request is executed."""

    model: str
    table: str
    padded_vocab_size: int
    decoupled: bool  # whether the model sends several responses to a request

    def infer(self, call: Call) -> Generator[Reply, None, None]:
        """See `Engine`. Closing the generator stops the call by a request with its id."""
        tensors = call_tensors(call, self.table, self.padded_vocab_size, stream=self.decoupled)
        request_id = uuid.uuid4().hex
        request = self._request(tensors, request_id, self._outputs(call, tensors))
        if not self.decoupled:
            yield _reply(request.exec())
            return
        responses = iter(request.exec(decoupled=True))
        ended = False
        try:
            for response in responses:
                if response.has_error() or response.output_tensors():
                    yield _reply(response)
            ended = True
        finally:
            if not ended:
                self._stop(request_id)
                for _ in responses:  # Triton keeps what nobody takes, and waits for it at its end
                    pass

    def _outputs(self, call: Call, tensors: Arrays) -> list[str]:
        return [
            *_OUTPUTS,
            *(["output_log_probs"] if call.log_probs else []),
            *(["generation_logits"] if call.wants_logits else []),
            *(_METRICS if "return_perf_metrics" in tensors else ()),
        ]

    def _stop(self, request_id: str) -> None:
        tensors: Arrays = {
            "input_ids": np.zeros((1, 1), np.int32),
            "input_lengths": np.ones((1, 1), np.int32),
            "request_output_len": np.ones((1, 1), np.int32),
            "stop": np.array([[True]]),
        }
        for _ in self._request(tensors, request_id, list(_OUTPUTS)).exec(decoupled=True):
            pass

    def _request(self, tensors: Arrays, request_id: str, outputs: list[str]) -> Any:
        return pb_utils.InferenceRequest(
            model_name=self.model,
            request_id=request_id,
            requested_output_names=outputs,
            inputs=[pb_utils.Tensor(name, array) for name, array in tensors.items()],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )


def _reply(response: Any) -> Reply:
    if response.has_error():
        raise _error(response.error())
    return read_reply({t.name(): t.as_numpy() for t in response.output_tensors()})


def _error(error: Any) -> EngineError:
    """Return an engine's error with its code and its first line.

    Triton may lose the code on its way; our own engine's message begins with it.
    """
    codes = {getattr(pb_utils.TritonError, name): name for name in CODES}
    message = str(error.message()).strip()
    first = message.splitlines()[0] if message else "the engine failed and did not say why"
    code, sentence = read_message(first)
    return EngineError(code or codes.get(error.code(), "INTERNAL"), sentence)
