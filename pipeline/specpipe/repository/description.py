"""The endpoint's description, which every repository stores in its text models."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from google.protobuf import text_format

from specpipe.config.run_config import RunConfig
from specpipe.core.conversation import ChatTemplate
from specpipe.core.endpoint import ClientTemplate, Endpoint, load_endpoint
from specpipe.core.errors import ConfigError
from specpipe.engine.vllm.triton_model import MODEL as VLLM_MODEL
from specpipe.repository.render import parse
from specpipe.runtime.assembly import describe_endpoint
from specpipe.runtime.tool_calls import format_of

PARAMETER = "endpoint"  # of a model's config.pbtxt
KEY_PARAMETER = "repository_key"  # likewise: the key of the repository's manifest
DESCRIPTION = "endpoint.json"  # of a run that another front than Triton serves
# The first of these models in the repository has the description.
FRONTS = ("tensorrt_llm_bls", "tensorrt_llm", VLLM_MODEL)


def describe_run(config: RunConfig, tokenizer: Path | None) -> Endpoint:
    """Return the endpoint of a run; clients whose server takes text only get the chat template.

    Without a tokenizer, `Endpoint.tokenizer` is empty.
    """
    endpoint = describe_endpoint(config)
    if tokenizer is None:
        return replace(endpoint, tokenizer="")
    facts = tokenizer / "tokenizer_facts.json"
    chat = json.loads(facts.read_text(encoding="utf-8"))["chat"] if facts.exists() else None
    if chat is None:
        return replace(endpoint, chats=False)
    takes = bool(endpoint.text.tensors.chat)
    return replace(
        endpoint,
        chats=True,
        template=None if takes else _client_template(tokenizer),
        tool_format=format_of(ChatTemplate(**chat)) or "",
    )


def _client_template(folder: Path) -> ClientTemplate:
    """Return the chat template of a tokenizer's folder, for clients that render it."""
    from specpipe.runtime.tokens import load_tokenizer

    loaded = load_tokenizer(folder)
    chat = loaded.chat
    return ClientTemplate(chat.template, loaded.begin, chat.control_tokens)


def read_endpoint(repository: Path) -> Endpoint:
    """Return the endpoint that a repository describes; raises ConfigError if it has none."""
    own = repository / DESCRIPTION
    if own.exists():
        return load_endpoint(own.read_text(encoding="utf-8"), str(own))
    for name in FRONTS:
        file = repository / name / "config.pbtxt"
        if not file.exists():
            continue
        try:
            parameters = parse(file.read_text(encoding="utf-8")).parameters
        except text_format.ParseError as error:
            raise ConfigError(
                f"{file} is damaged: {error}", hint="run `specpipe package` again"
            ) from error
        return load_endpoint(parameters[PARAMETER].string_value, str(file))
    raise ConfigError(f"{repository} is not built", hint="run `specpipe build`")


def token_counter(repository: Path, endpoint: Endpoint) -> Callable[[str], int] | None:
    """Return a function that counts the tokens of a text; None for a repository without tokenizer.

    Clients count the tokens of answers with it, where the server does not report them.
    """
    from specpipe.runtime.tokens import load_tokenizer

    return load_tokenizer(repository / endpoint.tokenizer).count if endpoint.tokenizer else None
