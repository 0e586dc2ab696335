"""`postprocessing`: output tokens into text, for clients that drive `tensorrt_llm` themselves."""

from typing import Any

import numpy as np

from specpipe.runtime.triton import api as triton
from specpipe.runtime.triton import requests
from specpipe.runtime.triton.tokenizing import TokenizerModel


class TritonPythonModel(TokenizerModel):
    """Triton's entry points."""

    def _answer(self, tensors: requests.Tensors) -> Any:
        beams = tensors["TOKENS_BATCH"]
        rows = beams.reshape(-1, beams.shape[-1])
        lengths = tensors["SEQUENCE_LENGTH"].reshape(-1)
        texts = [
            self._tokenizer.decode_answer(row[:n].tolist())
            for row, n in zip(rows, lengths, strict=True)
        ]
        return triton.response({"OUTPUT": np.array([t.encode() for t in texts], object)})
