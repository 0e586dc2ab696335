"""Converts the options of a request to the JSON body of OpenAI's API."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from specpipe.core.conversation import Conversation, dump_conversation
from specpipe.core.endpoint import Model
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.core.guide import Guide
from specpipe.serve.fields import Body, sampling_fields
from specpipe.serve.inputs import allowed_drafts
from specpipe.serve.options import Options

CHAT, COMPLETIONS = "/chat/completions", "/completions"


@dataclass(frozen=True)
class HttpRequest:
    """One request: the model as it is described, the route and the body."""

    model: Model
    route: str
    body: Body

    @property
    def chat(self) -> bool:
        """Whether the answer is a message."""
        return self.route == CHAT

    @property
    def streams(self) -> bool:
        """Whether the answer comes in pieces."""
        return bool(self.body.get("stream"))


def text_body(
    model: Model, prompt: str | Conversation, options: Options, *, stream: bool
) -> HttpRequest:
    """Return a request for a text, or for the answer to a conversation.

    Raises Unsupported if the server has no field for an option, and ConfigError for a number of
    draft tokens that it never drafts.
    """
    if isinstance(prompt, str):
        return _request(model, COMPLETIONS, {model.tensors.prompt: prompt}, options, stream=stream)
    if prompt.template:
        raise Unsupported(
            f"chat_template is {prompt.template!r}: an OpenAI API has no names of templates"
        )
    conversation: Body = json.loads(dump_conversation(prompt))
    if prompt.add_generation_prompt:
        conversation.pop("add_generation_prompt", None)  # every server's default
    return _request(model, CHAT, conversation, options, stream=stream)


def token_body(model: Model, prompt: Sequence[int], options: Options) -> HttpRequest:
    """Return a streamed request in tokens; raises what `text_body` raises."""
    return _request(model, COMPLETIONS, {model.tensors.prompt: list(prompt)}, options, stream=True)


def _request(
    model: Model, route: str, prompt: Body, options: Options, *, stream: bool
) -> HttpRequest:
    names = model.tensors
    _refuse_missing(model, options)
    streamed = {names.stream: True, "stream_options": {"include_usage": True}} if stream else {}
    body: Body = {
        "model": model.name,
        **prompt,
        names.max_tokens: options.max_tokens,
        **streamed,
        **sampling_fields(model, options),
        **_drafts(model, options.num_draft_tokens),
        **_guide(options.guide),
        **dict(map(_flag, names.flags)),
    }
    if options.cache_salt is not None:
        body["cache_salt"] = options.cache_salt
    return HttpRequest(model, route, body)


def _refuse_missing(model: Model, options: Options) -> None:
    """Raise Unsupported for an option that no field of the API stands for."""
    if options.fit_max_tokens:
        raise Unsupported("fit_max_tokens: an OpenAI API does not cut max_tokens")
    if options.count_every_response:
        raise Unsupported("count_every_response: this client does not read such counts")
    if options.log_probs or options.tops:
        raise Unsupported("log_probs: this client does not read log probabilities over HTTP")
    if options.cache_salt is not None and not model.takes_cache_salt:
        raise Unsupported(f"cache_salt: the model {model.name} does not separate prompts by it")


def _drafts(model: Model, asked: int | None) -> Body:
    """Return the limit of draft tokens."""
    if not allowed_drafts(model, asked):
        return {}
    return {"num_draft_tokens": asked}


def _guide(guide: Guide | None) -> Body:
    """Return what the answer must match; raises Unsupported for what OpenAI's API has no field for.

    Servers have fields of their own for expressions and grammars, and some ignore those of others.
    """
    if guide is None:
        return {}
    if guide.kind not in ("json", "json_schema"):
        raise Unsupported(f"{guide.kind}: over HTTP this client sends JSON schemas only")
    try:
        schema = json.loads(guide.text or "{}")
    except ValueError as error:
        raise ConfigError(f"the JSON schema cannot be used: {error}") from error
    named = {"name": "answer", "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _flag(flag: str) -> tuple[str, bool]:
    """Return a flag of the description, `name` or `name=false`, as a field."""
    name, _, value = flag.partition("=")
    if value not in ("", "true", "false"):
        raise ConfigError(f"the description of the server has the flag {flag!r}")
    return name, value != "false"
