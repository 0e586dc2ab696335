"""Converts the options of a request to the tensors and parameters of a model."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype

from specpipe.core.conversation import Conversation, dump_conversation
from specpipe.core.endpoint import ClientTemplate, Model
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.core.guide import Guide
from specpipe.runtime.triton.requests import word_layout
from specpipe.runtime.triton.upstream_rules import OFF
from specpipe.serve.fields import sampling_fields
from specpipe.serve.options import Options as Options

Arrays = dict[str, NDArray[Any]]


_KINDS: dict[str, type] = {
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "repetition_penalty": np.float32,
    "presence_penalty": np.float32,
    "frequency_penalty": np.float32,
    "min_tokens": np.int32,
    "seed": np.uint64,
    "end_id": np.int32,
}
_MOST = float(np.finfo(np.float32).max)
_OF_THEIR_OWN = ("max_tokens", "num_draft_tokens", "end_ids", "cache_salt", "log_probs",
                 "fit_max_tokens", "count_every_response", "guide", "tops")  # fmt: skip


@dataclass(frozen=True)
class ModelRequest:
    """What is sent to a model: input tensors and request parameters."""

    model: Model
    inputs: Arrays
    parameters: dict[str, int | str]


def unshared(options: Options, model: Model) -> Options:
    """Return options whose prompt does not find the KV blocks of earlier requests.

    Measurements need it: a prompt that was sent before is not read again. Models without
    `takes_cache_salt` are not known to share blocks; their options are returned unchanged.
    """
    if not model.takes_cache_salt:
        return options
    return replace(options, cache_salt=secrets.token_hex(8))


def text_request(
    model: Model,
    prompt: str | Conversation,
    options: Options,
    *,
    stream: bool,
    template: ClientTemplate | None = None,
) -> ModelRequest:
    """Return a request to a model that takes text.

    `template` renders a conversation for a model that takes none. Raises Unsupported if the model
    cannot do what is requested, ConfigError for a number of draft tokens that it never drafts, and
    for what no tensor can hold.
    """
    if stream and not model.decoupled:
        raise Unsupported(
            f"{model.name} answers in one piece and cannot stream",
            hint="set serving.decoupled: true and package the run again",
        )
    return _request(model, _prompt(model, prompt, template), options, stream=stream)


def _prompt(
    model: Model, prompt: str | Conversation, template: ClientTemplate | None
) -> dict[str, list[Any]]:
    if isinstance(prompt, str):
        return {model.tensors.prompt: [_bytes("the prompt", prompt)]}
    if model.tensors.chat:
        return {model.tensors.chat: [_bytes("the conversation", dump_conversation(prompt))]}
    if template is None:
        raise Unsupported(f"{model.name} takes no conversations", hint="send text instead")
    return {model.tensors.prompt: [_bytes("the conversation", rendered(template, prompt))]}


def rendered(template: ClientTemplate, conversation: Conversation) -> str:
    """Return a conversation as a text for a server that finds control tokens in every text.

    Raises ConfigError if a text of the conversation contains one, and what the template raises.
    """
    from specpipe.core.chat_template import render

    for text in conversation.texts():
        for token in template.control:
            if token in text:
                raise ConfigError(
                    f"the conversation contains {token!r}, which the server would read as a "
                    "control token",
                    hint="remove it; servers of other backends take it as text",
                )
    return render(template.chat, conversation).removeprefix(template.begin)


def token_request(model: Model, prompt: Sequence[int], options: Options) -> ModelRequest:
    """Return a request to a model that takes tokens, streamed where the model can; raises what
    `text_request` raises.
    """
    inputs = {model.tensors.prompt: list(prompt), model.tensors.prompt_length: [len(prompt)]}
    return _request(model, inputs, options, stream=model.decoupled)


def context_request(model: Model, prompt: Sequence[int]) -> ModelRequest:
    """Return a request for the logits after every token of `prompt`, and for one token.

    Raises Unsupported if the model does not give them.
    """
    if not model.gives_context_logits:
        raise Unsupported(f"{model.name} does not return the logits of a prompt")
    asked = token_request(model, prompt, Options(max_tokens=1))
    flag = np.array([[True]] if model.batched else [True])
    return replace(asked, inputs={**asked.inputs, model.tensors.context_flag: flag})


def scoring_request(model: Model, prompt: Sequence[int], options: Options) -> ModelRequest:
    """Return a request for tokens whose first response scores the prompt.

    Raises Unsupported if the model does not score prompts, and what `token_request` raises.
    """
    if not model.tensors.scores_flag:
        raise Unsupported(f"{model.name} does not return the log probabilities of a prompt")
    asked = token_request(model, prompt, options)
    flag = np.array([[True]] if model.batched else [True])
    return replace(asked, inputs={**asked.inputs, model.tensors.scores_flag: flag})


def _request(
    model: Model, prompt: dict[str, list[Any]], options: Options, *, stream: bool
) -> ModelRequest:
    names = model.tensors
    limits, parameters = _draft_limit(model, options.num_draft_tokens)
    inputs: Arrays = {
        **{name: np.array(v, object if isinstance(v[0], bytes) else np.int32)
           for name, v in prompt.items()},
        names.stream: np.array([stream]),
        names.exclude_prompt: np.array([True]),
        **{name: np.array([True]) for name in _flags(model, options)},
        **(_as_json(model, options) if names.sampling else _as_tensors(model, options)),
        **_guide(model, options.guide),
        **_tops(model, options.tops),
        **{name: np.array([value], np.int32) for name, value in limits.items()},
    }  # fmt: skip
    if model.batched:
        inputs = {name: array[None] for name, array in inputs.items()}
    own: dict[str, int | str] = {
        **_salt(model, options.cache_salt),
        **_fit(model, options),
        **_count(model, options),
    }
    return ModelRequest(model, inputs, {**parameters, **own})


def _as_tensors(model: Model, options: Options) -> Arrays:
    return {
        model.tensors.max_tokens: _number("max_tokens", options.max_tokens, np.int32),
        **_options(model, options),
        **_end_ids(model, options.end_ids),
    }


def _as_json(model: Model, options: Options) -> Arrays:
    """Return the input that has all options in one JSON text."""
    names = model.tensors
    values = {names.max_tokens: options.max_tokens, **sampling_fields(model, options)}
    return {names.sampling: np.array([json.dumps(values).encode()], object)}


def _fit(model: Model, options: Options) -> dict[str, bool]:
    if options.fit_max_tokens and not model.fits_max_tokens:
        raise Unsupported(f"fit_max_tokens: the model {model.name} does not cut max_tokens")
    return {"fit_max_tokens": True} if options.fit_max_tokens else {}


def _count(model: Model, options: Options) -> dict[str, bool]:
    if options.count_every_response and not model.counts_every_response:
        raise Unsupported(
            f"the model {model.name} does not report the tokens of a stream before its end",
            hint="specpipe's own text models do, once their run is packaged by this release",
        )
    return {"count_every_response": True} if options.count_every_response else {}


def _flags(model: Model, options: Options) -> tuple[str, ...]:
    """Return the inputs that ask for outputs; raises Unsupported if one is missing."""
    names = model.tensors
    if not options.log_probs:
        return names.flags
    if not names.log_probs_flag:
        raise Unsupported(f"the model {model.name} does not return log probabilities")
    return (*names.flags, names.log_probs_flag)


def _options(model: Model, options: Options) -> Arrays:
    """Return the tensors of the options that are given; raises Unsupported if one has none."""
    inputs: Arrays = {}
    for name in (f.name for f in fields(options) if f.name not in _OF_THEIR_OWN):
        value = getattr(options, name)
        if value is None or value == ():
            continue
        if name not in model.tensors.options:
            raise Unsupported(f"{name} is {value!r}: the model {model.name} has no such option")
        tensor = model.tensors.options[name]
        if isinstance(value, tuple):
            inputs[tensor] = np.array([_bytes(name, word) for word in value], object)
        else:
            inputs[tensor] = _number(name, value, _KINDS[name])
    return inputs


def _number(name: str, value: float, kind: type) -> NDArray[Any]:
    """Return [1] of a kind; raises ConfigError for what it cannot hold, which NumPy may wrap."""
    whole = issubclass(kind, np.integer)
    low, high = (np.iinfo(kind).min, np.iinfo(kind).max) if whole else (-_MOST, _MOST)
    if not low <= value <= high:
        wanted = f"from {low} to {high}" if whole else "a finite number"
        raise ConfigError(f"{name} is {value}: must be {wanted}")
    return np.array([value], kind)


def _bytes(name: str, text: str) -> bytes:
    """Return UTF-8; raises ConfigError for the lone surrogates that stand for other bytes."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{name} is not UTF-8: {text!r}"[:200]) from error


def _end_ids(model: Model, ids: Sequence[int]) -> Arrays:
    """Return the tensors of end tokens: all but the first are stop words of one token."""
    if not ids:
        return {}
    end, stop = model.tensors.options.get("end_id"), model.tensors.stop_tokens
    if end is None or (ids[1:] and not stop):
        raise Unsupported(f"end_ids is {tuple(ids)}: the model {model.name} has no such option")
    words = {stop: word_layout(tuple((token,) for token in ids[1:]))[0]} if ids[1:] else {}
    return {end: np.array([ids[0]], np.int32), **words}


def _tops(model: Model, count: int) -> Arrays:
    if not count:
        return {}
    if not model.tensors.tops:
        raise Unsupported(f"the model {model.name} does not return the likeliest tokens")
    return {model.tensors.tops: np.array([count], np.int32)}


def _guide(model: Model, guide: Guide | None) -> Arrays:
    if guide is None:
        return {}
    names = model.tensors
    if not names.guide_kind:
        raise Unsupported(
            f"the model {model.name} cannot constrain answers to a schema or an expression",
            hint="the CPU engine does (backend: openvino, serving.loop: engine), and trtllm-serve "
            "and vllm serve do; TensorRT-LLM's C++ backend does from 0.19 on, in text models and "
            "without draft tokens (method: none)",
        )
    kind = np.array([guide.kind.encode()], object)
    text = {names.guide: np.array([_bytes("the guide", guide.text)], object)} if guide.text else {}
    return {names.guide_kind: kind, **text}


def _salt(model: Model, salt: str | None) -> dict[str, str]:
    if salt is None:
        return {}
    if not model.takes_cache_salt:
        raise Unsupported(f"cache_salt: the model {model.name} does not separate prompts by it")
    return {"cache_salt": salt}


def allowed_drafts(model: Model, asked: int | None) -> bool:
    """Tell whether a request has to carry its number of draft tokens, at most `asked` per step.

    Raises Unsupported if the model takes no such number, ConfigError if it is none that it drafts.
    """
    limit = model.draft_limit
    if asked is None or (asked == 0 and not model.speculates):
        return False
    if not model.speculates:
        raise ConfigError(f"num_draft_tokens is {asked}: {model.name} drafts nothing; use 0")
    if limit is None:
        raise Unsupported(
            f"num_draft_tokens is {asked}: {model.name} drafts as many tokens in every request as "
            "it was built for; no request can change that",
            hint="leave it out; for plain decoding build a run with speculation.method: none",
        )
    if not limit.allows(asked):
        possible = f"from 0 to {limit.most}" if limit.any_number else f"0 or {limit.most}"
        raise ConfigError(f"num_draft_tokens is {asked}: {model.name} takes {possible}")
    return True


def _draft_limit(model: Model, asked: int | None) -> tuple[dict[str, int], dict[str, int]]:
    """Return the tensors and the parameters that limit a request's draft tokens."""
    carried, limit = allowed_drafts(model, asked), model.draft_limit
    if not carried or asked is None or limit is None:
        return {}, {}
    if limit.carrier == "lookahead":
        return (OFF if asked == 0 else {}), {}
    own = {"num_draft_tokens": asked}
    return (own, {}) if limit.carrier == "tensor" else ({}, own)


def input_tensors(arrays: Arrays) -> list[Any]:
    """Return the arrays as what the gRPC client sends."""
    return [_tensor(name, array) for name, array in arrays.items()]


def _tensor(name: str, array: NDArray[Any]) -> Any:
    tensor = grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor
