"""Fetch the description of an endpoint from its server."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tritonclient.utils import InferenceServerException

from specpipe.core.artifacts import read_artifact
from specpipe.core.endpoint import DraftLimit, Endpoint, Model, Serving, load_endpoint
from specpipe.core.errors import ConfigError
from specpipe.engine.llmapi.endpoint import TENSORS as LLMAPI_TENSORS
from specpipe.engine.llmapi.endpoint import describe as describe_llmapi
from specpipe.engine.upstream_models import TOKENS, UPSTREAMS_TEXT, upstream_endpoint
from specpipe.engine.vllm.triton_endpoint import describe as describe_vllm
from specpipe.engine.vllm.triton_model import MODEL as VLLM_MODEL
from specpipe.repository.description import FRONTS, KEY_PARAMETER, PARAMETER
from specpipe.serve.connect import ClientTls, connect
from specpipe.serve.http.base import is_http
from specpipe.serve.refusals import refusal

_MOST = 64  # limit on `num_draft_tokens` for upstream's `tensorrt_llm_bls`


def fetch_endpoint(url: str, tls: ClientTls | None = None) -> Endpoint:
    """Return the endpoint of the server at `url`.

    A server without a description is treated as upstream's. Raises Unavailable if the server cannot
    be reached, ConfigError if it has no model that takes text.
    """
    found: dict[str, Any] = {}
    connection = connect(url, tls)
    try:
        for name in FRONTS:
            if connection.is_model_ready(name):
                found[name] = connection.get_model_config(name).config
    except InferenceServerException as error:
        raise refusal(error, url) from error
    finally:
        connection.close()
    for config in found.values():
        if PARAMETER in config.parameters:
            return load_endpoint(config.parameters[PARAMETER].string_value, f"the server at {url}")
    return upstreams(found, url)


def fetch_repository_key(url: str, tls: ClientTls | None = None) -> str | None:
    """Return the key of the repository that the server at `url` serves; None if it has none.

    An OpenAI API has none. Raises Unavailable if the server cannot be reached.
    """
    if is_http(url):
        return None
    connection = connect(url, tls)
    try:
        for name in FRONTS:
            if connection.is_model_ready(name):
                parameters = connection.get_model_config(name).config.parameters
                if KEY_PARAMETER in parameters:
                    return str(parameters[KEY_PARAMETER].string_value)
    except InferenceServerException as error:
        raise refusal(error, url) from error
    finally:
        connection.close()
    return None


def require_same_repository(url: str, repository: Path, tls: ClientTls | None = None) -> None:
    """Raise ConfigError if the server at `url` reports another repository than this one.

    Servers of tensorrtllm_backend, OpenAI APIs and repositories of older releases report none.
    """
    served, artifact = fetch_repository_key(url, tls), read_artifact(repository)
    if served is None or artifact is None or served == artifact.manifest.key:
        return
    raise ConfigError(
        f"the server at {url} serves another repository than {repository}: its key is "
        f"{served[:12]} instead of {artifact.manifest.key[:12]}",
        hint="serve this run's repository, or pass the config of the run that the server serves",
    )


def upstreams(configs: dict[str, Any], url: str) -> Endpoint:
    """Return the endpoint of upstream's models with these names."""
    decoupled = {n: bool(c.model_transaction_policy.decoupled) for n, c in configs.items()}
    if VLLM_MODEL in configs:
        return describe_vllm(Serving("unknown"))
    engine = configs.get("tensorrt_llm")
    if engine is not None and LLMAPI_TENSORS.max_tokens in {tensor.name for tensor in engine.input}:
        return describe_llmapi(Serving("unknown", streams=decoupled["tensorrt_llm"]))
    if "tensorrt_llm_bls" not in configs:
        raise ConfigError(
            f"the server at {url} has none of the models that take text: tensorrt_llm_bls, or "
            f"tensorrt_llm of the LLM API, {VLLM_MODEL} of the vllm backend",
            hint="give --url of a server that `specpipe serve` started",
        )
    limit = DraftLimit("tensor", _MOST, any_number=True)
    tokens = Model("tensorrt_llm", TOKENS, decoupled=decoupled.get("tensorrt_llm", False))
    endpoint = upstream_endpoint(tokens, limit, streams=decoupled["tensorrt_llm_bls"])
    text = replace(
        endpoint.named("tensorrt_llm_bls"),
        tensors=UPSTREAMS_TEXT,
        fits_max_tokens=False,
        counts_every_response=False,
    )
    return replace(endpoint, texts=(text,), tokenizer="")
