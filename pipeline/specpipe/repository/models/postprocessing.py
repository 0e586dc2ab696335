"""`postprocessing`: output tokens into text, for clients that drive `tensorrt_llm` themselves."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from specpipe.repository.models import requests, triton
from specpipe.repository.models.tokens import load_tokenizer


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the tokenizer."""
        folder = triton.parameters(args)["tokenizer_dir"]
        self._tokenizer = load_tokenizer(triton.model_folder(args) / folder)

    def execute(self, batch: list[Any]) -> list[Any]:
        """Answer every request."""
        return [self._safely(request) for request in batch]

    def _safely(self, request: Any) -> Any:
        try:
            return self._answer(triton.input_tensors(request))
        except Exception as error:
            return triton.error_response(error)

    def _answer(self, tensors: requests.Tensors) -> Any:
        beams = tensors["TOKENS_BATCH"]
        rows = beams.reshape(-1, beams.shape[-1])
        lengths = tensors["SEQUENCE_LENGTH"].reshape(-1)
        texts = [
            self._tokenizer.decode(row[:n].tolist()) for row, n in zip(rows, lengths, strict=True)
        ]
        return triton.response({"OUTPUT": np.array([t.encode() for t in texts], object)})
