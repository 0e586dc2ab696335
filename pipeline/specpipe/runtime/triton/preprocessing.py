"""`preprocessing`: texts into tensors, for clients that drive `tensorrt_llm` themselves."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from specpipe.runtime import bounds
from specpipe.runtime.triton import api as triton
from specpipe.runtime.triton import requests, unsupported
from specpipe.runtime.triton.tokenizing import TokenizerModel


class TritonPythonModel(TokenizerModel):
    """Triton's entry points."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Store the tokenizer's path and the limit of a prompt."""
        super().initialize(args)
        self._max_input_len = int(triton.parameters(args)["max_input_len"])

    def _answer(self, tensors: requests.Tensors) -> Any:
        bounds.check_texts(tensors, self._tokenizer.most_bytes(self._max_input_len))
        unsupported.refuse_unsupported(tensors)
        prompt = requests.read_prompt(tensors, "QUERY", "CHAT")
        ids = self._tokenizer.encode_prompt(prompt, self._max_input_len)
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
