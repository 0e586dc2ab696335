"""The endpoint's description, which every repository stores in its text models."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from google.protobuf import text_format

from specpipe.config.run_config import RunConfig
from specpipe.core.endpoint import Endpoint, Template, load_endpoint
from specpipe.core.errors import ConfigError
from specpipe.repository.render import parse
from specpipe.runtime.assembly import describe_endpoint

PARAMETER = "endpoint"  # of a model's config.pbtxt
KEY_PARAMETER = "repository_key"  # likewise: the key of the repository's manifest
FRONTS = ("tensorrt_llm_bls", "tensorrt_llm")  # the first one in the repository has the description


def describe_run(config: RunConfig, tokenizer: Path | None) -> Endpoint:
    """Return the endpoint of a run, with the chat template of its tokenizer's folder, if any.

    Without a tokenizer, `Endpoint.tokenizer` is empty.
    """
    endpoint = describe_endpoint(config)
    if tokenizer is None:
        return replace(endpoint, tokenizer="")
    return replace(endpoint, template=read_template(tokenizer))


def read_template(tokenizer: Path) -> Template | None:
    """Return the chat template of a tokenizer's folder; None if it has no tokenizer_facts.json."""
    file = tokenizer / "tokenizer_facts.json"
    if not file.exists():
        return None
    facts = json.loads(file.read_text(encoding="utf-8"))
    return Template(facts["chat_prefix"], facts["chat_suffix"])


def read_endpoint(repository: Path) -> Endpoint:
    """Return the endpoint that a repository describes; raises ConfigError if it has none."""
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
