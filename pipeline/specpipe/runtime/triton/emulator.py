"""`tensorrt_llm` on a CPU: an engine of ours behind the tensors of TensorRT-LLM's.

Takes one request at a time and answers it whole, as a C++ model that is not decoupled does, and
refuses what that refuses: streams, and longer drafts than its engine is built for. A draft
(`draft_input_ids`) is verified in one step, by comparison, or by the ratio of the distributions if
`draft_logits` come with it. What a request leaves in the KV cache is kept for the next one that
begins alike.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.runtime import bounds, context
from specpipe.runtime.assembly import load_backend
from specpipe.runtime.triton import api as triton
from specpipe.runtime.triton import requests, token_requests, unsupported, upstream_rules
from specpipe.runtime.verifying import CheckedCall, Prefixes, answer, read_prompt

_SUPPORTED = context.SUPPORTED | {
    "draft_input_ids",
    "draft_logits",
    "embedding_bias",
    "return_generation_logits",
}


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the engine, with room for as many sequences as the engine was built for."""
        options = triton.parameters(args)
        folder = triton.model_folder(args) / options["engine"]
        engine = load_backend(options["backend"]).load(folder)
        self._most = int(options["num_draft_tokens"])
        self._prefixes = Prefixes(engine, int(options["max_batch_size"]))
        self._vocab_size = engine.facts.vocab_size
        self._max_seq_len = int(options["max_seq_len"])
        triton.trim_memory()

    def execute(self, batch: list[Any]) -> list[Any]:
        """Answer every request."""
        return [self._safely(request) for request in batch]

    def _safely(self, request: Any) -> Any:
        try:
            return triton.response(self._answer(triton.input_tensors(request)))
        except Exception as error:
            return triton.error_response(error)

    def _answer(self, tensors: requests.Tensors) -> dict[str, NDArray[Any]]:
        bounds.check_tokens(tensors, self._max_seq_len, "max_seq_len")
        upstream_rules.check_streaming(tensors, decoupled=False)
        unsupported.refuse_unsupported(tensors, _SUPPORTED)
        if requests.flag(tensors, "stop"):  # nothing else runs
            return outputs((), (), None)
        question = self._question(tensors)
        wants_context = requests.flag(tensors, context.FLAG)
        read = read_prompt(question.prompt, self._prefixes).outputs() if wants_context else {}
        reply = answer(question, self._prefixes)
        echo = upstream_rules.echo(tensors, question.prompt)
        logits = reply.logits if requests.flag(tensors, "return_generation_logits") else None
        return outputs((*echo, *reply.tokens), reply.log_probs, logits) | read

    def _question(self, tensors: requests.Tensors) -> CheckedCall:
        asked = token_requests.read_request(
            tensors, self._vocab_size, self._max_seq_len, self._max_seq_len
        )
        draft = token_requests.draft(tensors, self._vocab_size)
        upstream_rules.check_draft(draft, self._most)
        return CheckedCall(
            prompt=asked.prompt,
            max_tokens=asked.max_tokens,
            sampling=asked.sampling,
            stop_words=asked.stop_words,
            draft=draft,
            draft_logits=token_requests.draft_logits(tensors),
            bias=token_requests.bias(tensors, self._vocab_size),
            log_probs=requests.flag(tensors, "return_log_probs"),
        )


def outputs(
    tokens: tuple[int, ...], log_probs: tuple[float, ...], logits: NDArray[np.float32] | None
) -> dict[str, NDArray[Any]]:
    """Return the tensors of a whole answer of one beam."""
    found: dict[str, NDArray[Any]] = {
        "output_ids": np.array([[tokens]], np.int32),
        "sequence_length": np.array([[len(tokens)]], np.int32),
        # Always there, as upstream's: its own client reads them without having asked.
        "output_log_probs": np.array([[log_probs]], np.float32),
        "cum_log_probs": np.array([[sum(log_probs)]], np.float32),
    }
    if logits is not None:
        found["generation_logits"] = logits[None, None].astype(np.float32)
    return found
