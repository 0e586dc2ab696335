"""Options as fields of a JSON object, with the names of OpenAI's API and of vLLM."""

from dataclasses import fields
from typing import Any

from specpipe.core.endpoint import Model
from specpipe.core.errors import Unsupported
from specpipe.serve.options import Options

Body = dict[str, Any]

_NO_END = -1  # of `end_id`: no end token ends the answer
_OF_THEIR_OWN = {
    "max_tokens", "num_draft_tokens", "end_ids", "cache_salt", "log_probs", "fit_max_tokens",
    "count_every_response",
    "temperature", "top_k", "top_p", "end_id", "stop_words", "guide", "tops",
}  # fmt: skip


def sampling_fields(model: Model, options: Options) -> Body:
    """Return the fields of sampling, penalties and ends, with the names of the description.

    Raises Unsupported if the server has no field for an option.
    """
    return {**_sampling(model, options), **_numbers(model, options), **_ends(model, options)}


def _sampling(model: Model, options: Options) -> Body:
    """Return the fields of sampling: greedy without top_k and top_p, as Triton's models decode.

    OpenAI's default is a temperature of 1.
    """
    if options.top_p in (None, 0) and options.top_k in (None, 1):
        return {"temperature": 0}
    found: Body = {"temperature": 1.0 if options.temperature is None else options.temperature}
    if options.top_p is not None:
        found["top_p"] = options.top_p
    if options.top_k:
        _require_field(model, "top_k", options.top_k)
        found["top_k"] = options.top_k
    return found


def _numbers(model: Model, options: Options) -> Body:
    found: Body = {}
    for name in (f.name for f in fields(options) if f.name not in _OF_THEIR_OWN):
        value = getattr(options, name)
        if value is not None and value != ():
            found[_require_field(model, name, value)] = value
    return found


def _require_field(model: Model, name: str, value: object) -> str:
    """Return the field of an option; raises Unsupported if there is none."""
    if name not in model.tensors.options:
        raise Unsupported(f"{name} is {value!r}: the model {model.name} has no such option")
    return model.tensors.options[name]


def _ends(model: Model, options: Options) -> Body:
    """Return what ends an answer; the end tokens of the model end it as well, unless ignored."""
    found: Body = {}
    if options.end_id is not None:
        name = _require_field(model, "end_id", options.end_id)
        if options.end_id != _NO_END:
            raise Unsupported(
                f"end_id is {options.end_id}: this server cannot replace the model's end tokens"
            )
        found[name] = True
    if options.end_ids:
        if not model.tensors.stop_tokens:
            raise Unsupported(
                f"end_ids is {options.end_ids}: the model {model.name} has no such option"
            )
        found[model.tensors.stop_tokens] = list(options.end_ids)
    if options.stop_words:
        found[_require_field(model, "stop_words", options.stop_words)] = list(options.stop_words)
    return found
