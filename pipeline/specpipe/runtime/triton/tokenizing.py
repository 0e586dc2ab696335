"""The common part of `preprocessing` and `postprocessing`: a tokenizer, one answer per request."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from specpipe.runtime.tokens import TextTokenizer, load_tokenizer
from specpipe.runtime.triton import api as triton
from specpipe.runtime.triton import requests


class TokenizerModel(ABC):
    """Triton's entry points of a model that needs nothing but the tokenizer."""

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

    @abstractmethod
    def _answer(self, tensors: requests.Tensors) -> Any:
        """Return the response to one request."""
