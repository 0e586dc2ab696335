"""Tensors and parameters of upstream's models by release, so that its clients work unchanged."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

MODELS = ("ensemble", "tensorrt_llm_bls", "tensorrt_llm", "preprocessing", "postprocessing")
LLMAPI = "llmapi/tensorrt_llm"
NEWEST = "1x"
_TEXT_MODELS = MODELS[:2]
_CHATS = {  # the inputs of a model for a text, and for a conversation instead
    **dict.fromkeys(_TEXT_MODELS, ("text_input", "chat")),
    "preprocessing": ("QUERY", "CHAT"),
}


@dataclass(frozen=True)
class Tensor:
    """One input or output of a model."""

    name: str
    data_type: str  # Triton's, without TYPE_: INT32, STRING, ...
    dims: tuple[int, ...]  # without the batch dimension; -1: any
    optional: bool = False
    scalar: bool = False  # the model sees [batch] instead of [batch, 1]
    ragged: bool = False


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model, and the parameters that it reads."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: tuple[str, ...] = ()


# As the LLM API's model has them; `tensorrtllm_backend` has no such tensors.
_FINISH_FLAG = Tensor("return_finish_reason", "BOOL", (1,), optional=True)
_FINISH = Tensor("finish_reason", "STRING", (1,))
_HISTOGRAM = Tensor("acceptance_histogram", "INT32", (-1,))  # steps by accepted draft tokens


def table_of(release: str) -> str:
    """Return the name of the table that holds the interface of a TensorRT-LLM release."""
    major, minor = (int(part) for part in release.split(".")[:2])
    if (major, minor) <= (0, 18):
        return "018"
    return "019" if (major, minor) == (0, 19) else NEWEST


@cache
def signatures(table: str = NEWEST) -> dict[str, Signature]:
    """Return the signature of every model of one of upstream's tables."""
    inputs: dict[str, list[Tensor]] = {}
    outputs: dict[str, list[Tensor]] = {}
    parameters: dict[str, list[str]] = {}
    file = Path(__file__).with_name(f"tensors_{table}.txt")
    for model, side, line in _lines(file.read_text(encoding="utf-8")):
        if side == "parameters":
            parameters.setdefault(model, []).append(line)
        else:
            (inputs if side == "inputs" else outputs).setdefault(model, []).append(_tensor(line))
    return {
        model: Signature(
            tuple(inputs[model]), tuple(outputs[model]), tuple(parameters.get(model, ()))
        )
        for model in inputs
    }


def served_signature(model: str, table: str = NEWEST) -> Signature:
    """Return the signature that specpipe's model declares: upstream's tensors of that release.

    The text models also declare the tensors of the newest release, so one client works with all.
    They and `preprocessing` take a conversation instead of a text, and the text models tell why an
    answer ended, and how many steps accepted how many draft tokens.
    """
    own = signatures(table)[model]
    if model in _TEXT_MODELS:
        newest = signatures()[model]
        own = Signature(
            (*_union(own.inputs, newest.inputs), _FINISH_FLAG),
            (*_union(own.outputs, newest.outputs), _FINISH, _HISTOGRAM),
        )
    return _with_chat(own, *_CHATS[model]) if model in _CHATS else own


def _with_chat(signature: Signature, text: str, chat: str) -> Signature:
    """Return a signature with one more input, one of which a request has: this one or the text."""
    inputs = [replace(t, optional=True) if t.name == text else t for t in signature.inputs]
    return replace(signature, inputs=(*inputs, Tensor(chat, "STRING", (1,), optional=True)))


def cpu_engine_signature() -> Signature:
    """Return the signature of the CPU engine, which also scores prompts and likeliest tokens."""
    own = served_signature("tensorrt_llm")
    flags = (
        Tensor("return_prompt_log_probs", "BOOL", (1,), optional=True),
        Tensor("num_top_log_probs", "INT32", (1,), optional=True),
    )
    scores = (
        Tensor("output_top_ids", "INT32", (-1, -1)),
        Tensor("output_top_log_probs", "FP32", (-1, -1)),
        Tensor("prompt_log_probs", "FP32", (-1,)),
        Tensor("prompt_top_ids", "INT32", (-1,)),
        Tensor("prompt_top_log_probs", "FP32", (-1,)),
    )
    return replace(own, inputs=(*own.inputs, *flags), outputs=(*own.outputs, *scores))


def _union(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    names = {tensor.name for tensor in first}
    return (*first, *(tensor for tensor in second if tensor.name not in names))


def _lines(text: str) -> Iterator[tuple[str, str, str]]:
    model, side = "", ""
    for line in text.splitlines():
        if line.startswith("["):
            model, side = line.strip("[]").split()
        elif line and not line.startswith("#"):
            yield model, side, line


def _tensor(line: str) -> Tensor:
    name, kind, *marks = line.split()
    match = re.fullmatch(r"([A-Z0-9]+)\[([-0-9,]*)\]", kind)
    if match is None:
        raise ValueError(f"not a tensor: {line}")
    dims = tuple(int(d) for d in match[2].split(","))
    return Tensor(name, match[1], dims, "optional" in marks, "scalar" in marks, "ragged" in marks)
