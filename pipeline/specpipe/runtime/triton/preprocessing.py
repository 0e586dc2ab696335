"""`preprocessing`: texts into tensors, for clients that drive `tensorrt_llm` themselves."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from specpipe.runtime import bounds
from specpipe.runtime.tokens import TextTokenizer, load_tokenizer
from specpipe.runtime.triton import api as triton
from specpipe.runtime.triton import requests


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Store the tokenizer's path; most servers never load the tokenizer."""
        options = triton.parameters(args)
        self._folder = triton.model_folder(args) / options["tokenizer_dir"]
        self._max_input_len = int(options["max_input_len"])

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
        bounds.check_texts(tensors, self._tokenizer.most_bytes(self._max_input_len))
        requests.refuse_unsupported(tensors)
        ids = self._tokenizer.encode(requests.texts(tensors, "QUERY")[0], self._max_input_len)
        end_id, pad_id = (requests.whole(tensors, name) for name in ("END_ID", "PAD_ID"))
        others = self._tokenizer.end_ids[1:] if end_id is None else ()
        bad, stop = (
            self._tokenizer.words(requests.texts(tensors, name))
            for name in ("BAD_WORDS_DICT", "STOP_WORDS_DICT")
        )
        return triton.response(
            {
                "INPUT_ID": np.array([ids], np.int32),
                "REQUEST_INPUT_LEN": np.array([[len(ids)]], np.int32),
                "DECODER_INPUT_ID": np.zeros((1, 0), np.int32),
                "REQUEST_DECODER_INPUT_LEN": np.zeros((1, 1), np.int32),
                "REQUEST_OUTPUT_LEN": tensors["REQUEST_OUTPUT_LEN"].astype(np.int32),
                "OUT_END_ID": _one(self._tokenizer.end_ids[0] if end_id is None else end_id),
                "OUT_PAD_ID": _one(self._tokenizer.pad_id if pad_id is None else pad_id),
                "BAD_WORDS_IDS": requests.word_layout(bad),
                # `end_id` takes one token: the model's other end tokens are stop words.
                "STOP_WORDS_IDS": requests.word_layout((*stop, *((end,) for end in others))),
            }
        )


def _one(value: int) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    return np.array([[value]], np.int32)
