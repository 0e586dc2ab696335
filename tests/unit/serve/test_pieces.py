"""Responses as pieces; a response is a small class with fixed outputs."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from specpipe.core.endpoint import Model, Tensors
from specpipe.serve.pieces import Acceptance, Reader

NAMES = Tensors("text_input", "max_tokens", "stream", "exclude", "text_output",
                drafted="drafted", accepted="accepted")  # fmt: skip


class Response:
    def __init__(self, text: str, **outputs: int) -> None:
        self.outputs: dict[str, Any] = {n: np.array([[v]]) for n, v in outputs.items()}
        self.outputs["text_output"] = np.array([text.encode()], object)

    def as_numpy(self, name: str) -> Any:
        return self.outputs.get(name)

    def get_response(self) -> Any:
        mark = SimpleNamespace(bool_param=0)
        return SimpleNamespace(
            parameters={"triton_final_response": mark}, outputs=(), raw_output_contents=()
        )


def test_counters_stay_as_they_were_reported_last() -> None:
    reader = Reader(Model("ensemble", NAMES))
    responses = [
        Response("a"),
        Response("b", drafted=4, accepted=3),
        Response("c"),
        Response("d", drafted=9, accepted=0),
    ]
    found = [reader.piece(response, 0.0) for response in responses]
    assert "".join(piece.text for piece in found) == "abcd"
    counted = [Acceptance(), Acceptance(4, 3), Acceptance(4, 3), Acceptance(9, 0)]
    assert [piece.acceptance for piece in found] == counted
