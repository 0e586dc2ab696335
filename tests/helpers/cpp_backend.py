"""A strict stand-in of Triton's C++ backend `tensorrtllm` with an engine of TensorRT-LLM.

It is made of the config.pbtxt of a packaged model, and refuses what Triton and the backend refuse.
Whatever it does not know is refused too. Sources, in Triton's server core:
`infer_request.cc::Normalize`; in tensorrtllm_backend v0.19 and TensorRT-LLM 1.x:
inflight_batcher_llm/src/{model_instance_state,model_state,utils}.cc,
executor/{requestImpl.h,samplingConfig.cpp}, batch_manager/llmRequest.h.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import triton_to_np_dtype

Arrays = dict[str, NDArray[Any]]
LOOKAHEAD = ("lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size")
_MODES = ("top_k", "top_p", "top_k_top_p", "beam_search", "medusa", "redrafter", "lookahead",
          "eagle")  # fmt: skip
_BATCHING = ("V1", "v1", "inflight_batching", "inflight_fused_batching")
_FLAGS = ("true", "True", "TRUE", "1", "false", "False", "FALSE", "0")
_READ_OUTSIDE_TRY = ("tokenizer_dir", "guided_decoding_backend", "xgrammar_tokenizer_info_path")
_GUIDES = ("json", "json_schema", "regex", "ebnf_grammar")
_NOT_NEGATIVE = ("runtime_top_k", "temperature", "min_tokens", "min_length")


class RefusedError(Exception):
    """What Triton or the backend answers instead of tokens, or why the model does not load."""


def _require(ok: bool, sentence: str) -> None:
    if not ok:
        raise RefusedError(sentence)


@dataclass(frozen=True)
class EngineLimits:
    """The facts in an engine's config.json that requests are compared with."""

    max_input_len: int = 64
    max_seq_len: int = 128
    max_draft_len: int = 0
    vocab_size: int = 16  # padded


@dataclass(frozen=True)
class EngineRequest:
    """A request as the backend hands it to the executor."""

    prompt: tuple[int, ...]
    max_tokens: int
    streaming: bool
    draft: tuple[int, ...] | None
    speculates: bool
    end_id: int | None
    log_probs: bool
    draft_logits: NDArray[np.float32] | None = None
    guide: tuple[str, str | None] | None = None  # type and text


Decode = Callable[[EngineRequest], Iterator[tuple[int, ...]]]  # yields the new tokens of each step


@dataclass
class CppBackend:
    """One model of the backend; `decode` is its engine."""

    config: pb.ModelConfig
    decode: Decode
    limits: EngineLimits = field(default_factory=EngineLimits)
    requests: list[Arrays] = field(default_factory=list)  # that were not refused by Triton
    stopped: list[str] = field(default_factory=list)  # ids of requests to stop

    def __post_init__(self) -> None:
        _require(self.config.backend == "tensorrtllm", f"backend {self.config.backend}")
        self._check_parameters()

    @property
    def decoupled(self) -> bool:
        return bool(self.config.model_transaction_policy.decoupled)

    def infer(
        self, tensors: Arrays, outputs: Sequence[str], request_id: str
    ) -> Iterator[Mapping[str, NDArray[Any]]]:
        """Yield the responses to one request; raises RefusedError."""
        self._check_triton(tensors, outputs)
        self.requests.append(tensors)
        if _flag(tensors, "stop"):
            _require(request_id != "", "Trying to stop a request but request ID is not provided")
            self.stopped.append(request_id)
            yield {}
            return
        asked = self._read(tensors)
        for name in ("output_ids", "sequence_length"):
            _require(name in outputs, f"{name} tensor must be present in list of output tensors")
        yield from self._respond(asked, tensors, outputs)

    def _respond(
        self, asked: EngineRequest, tensors: Arrays, outputs: Sequence[str]
    ) -> Iterator[Arrays]:
        """Yield the steps of a stream, or a whole answer: scores are of all tokens so far."""
        given: list[int] = []
        steps = list(self.decode(asked)) or [()]
        for number, step in enumerate(steps):
            given += step
            if not asked.streaming and number + 1 < len(steps):
                continue
            echo = () if asked.streaming or self._excludes(tensors) else asked.prompt
            tokens = list(step) if asked.streaming else [*echo, *given]
            found: Arrays = {
                "output_ids": np.array([[tokens]], np.int32),
                "sequence_length": np.array([[len(tokens)]], np.int32),
            }
            if asked.log_probs:
                scores = [score_of(token, place) for place, token in enumerate(given)]
                found["output_log_probs"] = np.array([[scores]], np.float32)
                found["cum_log_probs"] = np.array([[sum(scores)]], np.float32)
            if _flag(tensors, "return_generation_logits"):
                shape = (1, 1, len(given), self.limits.vocab_size)
                found["generation_logits"] = np.zeros(shape, np.float32)
            if _flag(tensors, "return_perf_metrics"):
                drafted = len(steps) * self.limits.max_draft_len * asked.speculates
                found["total_draft_tokens"] = np.array([[drafted]], np.int32)
                found["total_accepted_draft_tokens"] = np.array([[drafted // 2]], np.int32)
            yield {name: array for name, array in found.items() if name in outputs}

    def _excludes(self, tensors: Arrays) -> bool:
        if "exclude_input_in_output" in tensors:
            return _flag(tensors, "exclude_input_in_output")
        return self.config.parameters["exclude_input_in_output"].string_value in _FLAGS[:4]

    # -- what tritonserver checks before the backend sees a request

    def _check_triton(self, tensors: Arrays, outputs: Sequence[str]) -> None:
        declared = {tensor.name: tensor for tensor in self.config.input}
        for name, array in tensors.items():
            _require(name in declared, f"unexpected inference input '{name}'")
            self._check_tensor(declared[name], array)
        missing = [t.name for t in self.config.input if not t.optional and t.name not in tensors]
        _require(not missing, f"missing required input(s) {missing}")
        known = {tensor.name for tensor in self.config.output}
        for name in outputs:
            _require(name in known, f"unexpected inference output '{name}'")

    def _check_tensor(self, declared: pb.ModelInput, array: NDArray[Any]) -> None:
        kind = pb.DataType.Name(declared.data_type).removeprefix("TYPE_")
        wanted = np.object_ if kind == "STRING" else triton_to_np_dtype(kind)
        _require(array.dtype == wanted, f"{declared.name} is {array.dtype}, expects {kind}")
        dims = list(declared.dims)
        fits = array.ndim == len(dims) + 1 and all(
            want in (-1, have) for want, have in zip(dims, array.shape[1:], strict=False)
        )
        _require(fits, f"unexpected shape for input '{declared.name}': {array.shape}, dims {dims}")
        most = self.config.max_batch_size
        _require(1 <= array.shape[0] <= most, f"{declared.name}: a batch of {array.shape[0]}")

    # -- what the backend checks: createRequestsFromInputTensors and what it calls

    def _read(self, tensors: Arrays) -> EngineRequest:
        streaming = _flag(tensors, "streaming")
        _require(
            self.decoupled or len(tensors["input_ids"]) == 1,
            "Batch size > 1 requires the tensorrt_llm backend to be using decoupled transaction "
            "policy",
        )
        _require(
            self.decoupled or not streaming,
            "Streaming is only supported if model is deployed using decoupled mode.",
        )
        _require("input_ids" in tensors, "input_ids is not present in the request.")
        prompt = tuple(int(token) for token in tensors["input_ids"].reshape(-1))
        _check_sampling(tensors)
        for name in ("stop_words_list", "bad_words_list"):
            if name in tensors:
                _check_words(name, tensors[name].reshape(-1))
        if "embedding_bias" in tensors:
            size = tensors["embedding_bias"].size
            _require(size == self.limits.vocab_size, f"embedding_bias has {size} values")
        asked = EngineRequest(
            prompt,
            int(tensors["request_output_len"].reshape(-1)[0]),
            streaming,
            self._draft(tensors),
            self._speculates(tensors),
            int(tensors["end_id"].reshape(-1)[0]) if "end_id" in tensors else None,
            _flag(tensors, "return_log_probs"),
            tensors.get("draft_logits"),
            self._guide(tensors),
        )
        self._check_lengths(asked, tensors)
        return asked

    def _draft(self, tensors: Arrays) -> tuple[int, ...] | None:
        if "draft_input_ids" not in tensors:
            _require("draft_logits" not in tensors, "draft_logits without draft_input_ids")
            return None
        draft = tuple(int(token) for token in tensors["draft_input_ids"].reshape(-1))
        _require(len(draft) > 0, "ExternalDraftTokensConfig: tokens are empty")
        if "draft_logits" in tensors:
            shape = tensors["draft_logits"].shape
            _require(shape[:2] == (1, len(draft)), f"draft_logits {shape}, {len(draft)} tokens")
        return draft

    def _guide(self, tensors: Arrays) -> tuple[str, str | None] | None:
        """Check a guide; upstream ignores unknown types, and all guides without its decoder."""
        kind, text = (
            bytes(tensors[name].reshape(-1)[0]).decode() if name in tensors else None
            for name in ("guided_decoding_guide_type", "guided_decoding_guide")
        )
        if kind is None:
            return None
        _require(kind in _GUIDES, f"guided_decoding_guide_type {kind} would be ignored")
        _require(self._follows_guides(), "the guide would be ignored: there is no guided decoder")
        _require(text is not None or kind == "json", "The guide string must be provided")
        return kind, text

    def _follows_guides(self) -> bool:
        parameters = self.config.parameters
        names = ("guided_decoding_backend", "xgrammar_tokenizer_info_path")
        return all(name in parameters and parameters[name].string_value for name in names)

    def _speculates(self, tensors: Arrays) -> bool:
        """Check the sizes of lookahead decoding; 1, 1, 0 turn it off."""
        if LOOKAHEAD[0] not in tensors:
            return True
        for name in LOOKAHEAD:
            _require(name in tensors, f"Failed to extract {name}")
        asked = tuple(int(tensors[name].reshape(-1)[0]) for name in LOOKAHEAD)
        most = self._lookahead()
        if most is None:
            raise RefusedError(
                "Cannot set the request lookahead decoding configuration when model instance "
                "lookahead parameters are not set."
            )
        window, ngram, verified = asked
        _require(window > 0 and ngram > 0 and verified >= 0, f"illegal lookahead sizes {asked}")
        less = all(have <= limit for have, limit in zip(asked, most, strict=True))
        _require(less, f"lookahead sizes {asked} are larger than the model's {most}")
        return asked != (1, 1, 0)

    def _check_lengths(self, asked: EngineRequest, tensors: Arrays) -> None:
        limits, length = self.limits, len(asked.prompt)
        _require(length > 0, "!mInputTokenIds.empty()")
        _require(asked.max_tokens > 0, "mMaxNewTokens > 0")
        told = int(tensors["input_lengths"].reshape(-1)[0])
        _require(told == length, f"input_lengths is {told}, input_ids has {length} tokens")
        _require(
            length <= limits.max_input_len,
            f"Prompt length ({length}) exceeds maximum input length ({limits.max_input_len}).",
        )
        draft = len(asked.draft or ())
        _require(
            draft <= limits.max_draft_len,
            f"Draft tokens length ({draft}) exceeds maximum draft tokens length "
            f"({limits.max_draft_len}).",
        )
        # The backend warns and shortens the answer, which no client of ours should need.
        whole = length + asked.max_tokens
        _require(whole <= limits.max_seq_len, f"{whole} tokens do not fit {limits.max_seq_len}")

    # -- what the backend checks as it loads: GetParameter and getExecutorConfigFromParams

    def _check_parameters(self) -> None:
        values = {name: p.string_value for name, p in self.config.parameters.items()}
        _require(values.get("gpt_model_type") in _BATCHING, "Invalid gpt_model_type.")
        _require(values.get("gpt_model_path", "") != "", "Both encoder and decoder model paths are")
        if "num_nodes" in values:  # 0.19 and later
            for name in _READ_OUTSIDE_TRY:
                _require(name in values, f"parameter {name} is not in the file")
        mode = values.get("decoding_mode", "")
        _require(mode in _MODES, f"decoding_mode {mode!r}: the backend would take its default")
        if mode == "lookahead":
            _require(self._lookahead() is not None, "lookahead parameters are not specified")
        for name, value in values.items():
            _require("${" not in value, f"{name} has a placeholder")
            if name.startswith("enable_") or name in ("normalize_log_probs", "multi_block_mode"):
                _require(value in _FLAGS, f"{name} is {value!r}: the backend would ignore it")

    def _lookahead(self) -> tuple[int, ...] | None:
        """Return the sizes of the model's instance; empty parameters mean that there are none."""
        if LOOKAHEAD[0] not in self.config.parameters:
            return None
        texts = [self.config.parameters[name].string_value for name in LOOKAHEAD]
        return tuple(map(int, texts)) if all(texts) else None


def _flag(tensors: Arrays, name: str) -> bool:
    return bool(tensors[name].reshape(-1)[0]) if name in tensors else False


def _check_sampling(tensors: Arrays) -> None:
    """Check what `executor::SamplingConfig` checks; a top_p of 0 counts as left out."""
    single = {n: a for n, a in tensors.items() if a.size == 1 and a.dtype != object}
    values = {n: float(a.reshape(-1)[0]) for n, a in single.items()}
    for name in _NOT_NEGATIVE:
        _require(values.get(name, 0) >= 0, f"{name} is {values.get(name)}")
    top_p = values.get("runtime_top_p", 1.0)
    _require(top_p <= 1, f"runtime_top_p is {top_p}")
    _require(values.get("repetition_penalty", 1) > 0, "repetition_penalty must be above 0")
    _require(values.get("beam_width", 1) == 1, "beam_width is above max_beam_width")


def _check_words(name: str, flat: NDArray[Any]) -> None:
    """Check what `convertWordList` checks: ids, then ends that rise and are padded with -1."""
    count = len(flat) // 2
    _require(len(flat) % 2 == 0, f"{name}: Sparse list must not have odd length")
    ends = flat[count:].tolist()
    used = ends[: ends.index(-1)] if -1 in ends else ends
    _require(all(end == -1 for end in ends[len(used) :]), f"{name}: additional -1s")
    _require(all(end <= count for end in used), f"{name}: out-of-bound offsets")
    _require(all(a < b for a, b in pairwise(used)), f"{name}: non-increasing")


def score_of(token: int, place: int) -> float:
    """Return the log-probability that the stand-in gives a token of an answer."""
    return -(1 + place) - token / 100
