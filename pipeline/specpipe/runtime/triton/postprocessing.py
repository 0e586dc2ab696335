"""`postprocessing`: output tokens into text, for clients that drive `tensorrt_llm` themselves."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from specpipe.runtime.tokens import TextTokenizer, load_tokenizer
from specpipe.runtime.triton import api as triton
from specpipe.runtime.triton import requests


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Store the tokenizer's path; most servers never load the tokenizer."""
        self._folder = triton.model_folder(args) / triton.parameters(args)["tokenizer_dir"]

    @cached_property
    def _tokenizer(self) -> TextTokenizer:
        return load_tokenizer(self._folder)

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
            self._tokenizer.decode_answer(row[:n].tolist())
            for row, n in zip(rows, lengths, strict=True)
        ]
        return triton.response({"OUTPUT": np.array([t.encode() for t in texts], object)})
