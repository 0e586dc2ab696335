"""The description of a server, by which clients call it: models, tensors, limits of requests.

A backend describes its servers with one `Endpoint`. It is packaged with the models, so a server
describes itself to its clients.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from specpipe.core.conversation import ChatTemplate
from specpipe.core.errors import ConfigError

# What clients speak: Triton's gRPC protocol, or OpenAI's HTTP API.
Api = Literal["triton", "openai"]
# How a request sets fewer draft tokens. tensor, parameter: the number, under the name
# `num_draft_tokens`. lookahead: the three sizes of lookahead decoding, of which 1, 1, 0 is plain.
Carrier = Literal["tensor", "parameter", "lookahead"]


@dataclass(frozen=True)
class Serving:
    """What a backend may know of a run when it describes how the run is served and called."""

    method: str
    num_draft_tokens: int = 0
    any_number: bool = False  # whether the method can draft fewer tokens for one request
    streams: bool = True  # whether answers are served piece by piece
    loop: str = "engine"  # bls: the text models drive the engines through Triton
    release: str | None = None  # of TensorRT-LLM; None: the default one
    front: str = "triton"  # what serves the model, `serving.front`
    model: str = ""  # its source


def is_draft_limit(asked: int, most: int, *, any_number: bool) -> bool:
    """Tell whether a request may have at most `asked` draft tokens per step, of `most`."""
    return 0 <= asked <= most and (any_number or asked in (0, most))


@dataclass(frozen=True)
class DraftLimit:
    """How one request limits its draft tokens; 0 means plain decoding."""

    carrier: Carrier
    most: int  # draft tokens of a step, unless a request sets fewer
    any_number: bool = False  # False: a request may set only 0 or `most`

    def allows(self, asked: int) -> bool:
        """Tell whether a request may set this number."""
        return is_draft_limit(asked, self.most, any_number=self.any_number)


@dataclass(frozen=True)
class Tensors:
    """The names of a model's tensors, by what they mean.

    For a server of OpenAI's API they are fields: inputs of a request, and outputs of an answer. A
    name with dots is a path in the answer; on the way, a list stands for its first item.
    """

    prompt: str
    max_tokens: str
    stream: str
    exclude_prompt: str  # true: a whole answer does not begin with the prompt
    answer: str  # an output: text or tokens
    chat: str = ""  # an input: a conversation in JSON, instead of the prompt
    prompt_length: str = ""  # of models that take tokens
    options: Mapping[str, str] = field(default_factory=dict)  # fields of `Options` -> inputs
    sampling: str = ""  # an input: `max_tokens`, `options`, `stop_tokens` as one object in JSON
    stop_tokens: str = ""  # token sequences that end an answer
    guide_kind: str = ""  # what an answer must match, see `core.guide`; empty: it cannot be set
    guide: str = ""
    flags: tuple[str, ...] = ()  # inputs that ask for the outputs below; `name=false`: set to false
    drafted: str = ""  # outputs; empty: the model does not report it
    accepted: str = ""
    histogram: str = ""  # an output: how many steps accepted 0, 1, ... draft tokens
    output_tokens: str = ""
    prompt_tokens: str = ""
    finish_reason: str = ""
    context_flag: str = ""  # an input that asks for `context_logits`
    context_logits: str = ""  # an output: the logits after every token of the prompt
    scores_flag: str = ""  # an input that asks for the next three
    prompt_log_probs: str = ""  # an output: of every token of the prompt but the first
    prompt_top_ids: str = ""  # an output: the most likely token after every token of the prompt
    prompt_top_log_probs: str = ""
    log_probs_flag: str = ""  # an input that asks for `log_probs`
    log_probs: str = ""  # an output: of the new tokens of a response
    tops: str = ""  # an input: how many likeliest tokens the next two have
    top_ids: str = ""  # an output: at every position of the new tokens of a response
    top_log_probs: str = ""


@dataclass(frozen=True)
class Model:
    """A model of a server as its clients call it."""

    name: str
    tensors: Tensors
    decoupled: bool = True  # several responses to a request; if not, nothing is streamed
    batched: bool = True  # tensors begin with a batch dimension of 1
    cumulative: bool = False  # every streamed text begins with all the text before it
    speculates: bool = True  # unless a request prevents it
    draft_limit: DraftLimit | None = None  # None: no request can change what is drafted
    fits_max_tokens: bool = False  # the request parameter `fit_max_tokens` cuts it to what fits
    counts_every_response: bool = False  # the parameter of this name has tokens counted so far
    counts_new_tokens: bool = False  # `output_tokens` are those of one response, not of all so far
    takes_cache_salt: bool = False  # a request parameter that separates prompts in the KV cache

    @property
    def can_decode_plainly(self) -> bool:
        """Whether a request can have an answer that is decoded without speculation."""
        return not self.speculates or self.draft_limit is not None

    @property
    def gives_context_logits(self) -> bool:
        """Whether answers can carry what the model expects after every token of the prompt."""
        return bool(self.tensors.context_flag and self.tensors.context_logits)

    @property
    def reports_acceptance(self) -> bool:
        """Whether answers say how many draft tokens there were and how many were accepted."""
        return bool(self.tensors.drafted and self.tensors.accepted)


@dataclass(frozen=True)
class ClientTemplate:
    """The chat template for clients of a model that takes text and no conversations."""

    chat: ChatTemplate
    begin: str  # the text of the tokens that the server puts before every text
    control: tuple[str, ...]  # no text of a conversation may contain them


@dataclass(frozen=True)
class Endpoint:
    """A deployment as its clients call it."""

    texts: tuple[Model, ...]  # text in, text out; the first is the one to prefer
    tokens: Model | None = None  # tokens in, tokens out; not what users call
    tokenizer: str = ""  # its folder below the model repository
    chats: bool = False  # whether the model has a chat template
    template: ClientTemplate | None = None  # None: the server renders conversations, or nobody
    tool_format: str = ""  # how the model writes tool calls; empty: not known
    api: Api = "triton"

    @property
    def text(self) -> Model:
        """The model that users call, unless they name another."""
        return self.texts[0]

    def named(self, name: str) -> Model:
        """Return a model that takes text; raises ConfigError if there is none of that name."""
        for model in self.texts:
            if model.name == name:
                return model
        known = ", ".join(model.name for model in self.texts)
        raise ConfigError(
            f"{name} is not a model of this server that takes text", hint=f"known: {known}"
        )


def dump_endpoint(endpoint: Endpoint) -> str:
    """Return a description as JSON, on one line."""
    return json.dumps(asdict(endpoint), sort_keys=True, separators=(",", ":"))


def load_endpoint(text: str, origin: str) -> Endpoint:
    """Return the description that `dump_endpoint` wrote; raises ConfigError if it is none.

    `origin` names where the text was found.
    """
    try:
        values = json.loads(text)
        template = values["template"]
        return Endpoint(
            texts=tuple(_model(model) for model in values["texts"]),
            tokens=None if values["tokens"] is None else _model(values["tokens"]),
            tokenizer=str(values["tokenizer"]),
            chats=bool(values["chats"]),
            template=None if template is None else _template(template),
            tool_format=str(values["tool_format"]),
            api=values.get("api", "triton"),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{origin} is not described as this release of specpipe describes endpoints: {error}",
            hint="run `specpipe package` again",
        ) from error


def _template(values: dict[str, Any]) -> ClientTemplate:
    chat, control = ChatTemplate(**values["chat"]), tuple(values["control"])
    return ClientTemplate(chat, str(values["begin"]), control)


def _model(values: dict[str, Any]) -> Model:
    tensors, limit = values["tensors"], values["draft_limit"]
    return Model(
        **{
            **values,
            "tensors": Tensors(**{**tensors, "flags": tuple(tensors["flags"])}),
            "draft_limit": None if limit is None else DraftLimit(**limit),
        }
    )
