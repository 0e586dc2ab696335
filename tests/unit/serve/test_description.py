"""Servers that do not describe themselves: upstream's own repositories, and others."""

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from specpipe.core.endpoint import DraftLimit
from specpipe.core.errors import ConfigError
from specpipe.serve.description import upstreams


def config(*inputs: str, decoupled: bool = False) -> pb.ModelConfig:
    return pb.ModelConfig(
        input=[pb.ModelInput(name=name) for name in inputs],
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=decoupled),
    )


def test_upstreams_repository_is_called_by_its_text_model() -> None:
    models = {"tensorrt_llm_bls": config("text_input", decoupled=True),
              "tensorrt_llm": config("input_ids")}  # fmt: skip
    endpoint = upstreams(models, "here:1")
    (model,) = endpoint.texts
    assert model.name == "tensorrt_llm_bls" and model.decoupled
    assert model.draft_limit == DraftLimit("tensor", 64, any_number=True)
    assert endpoint.tokens is not None and not endpoint.tokens.decoupled
    assert endpoint.tokenizer == "" and not endpoint.chats and endpoint.template is None


@pytest.mark.parametrize("decoupled", [True, False])
def test_upstreams_llm_api_is_known_by_its_tensors(decoupled: bool) -> None:
    model = config("text_input", "sampling_param_max_tokens", decoupled=decoupled)
    endpoint = upstreams({"tensorrt_llm": model}, "here:1")
    assert endpoint.text.tensors.max_tokens == "sampling_param_max_tokens"
    assert endpoint.text.decoupled == decoupled and endpoint.tokens is None
    assert not endpoint.text.can_decode_plainly


@pytest.mark.parametrize("models", [{}, {"tensorrt_llm": config("input_ids")}])
def test_a_server_of_something_else_is_a_sentence(models: dict[str, pb.ModelConfig]) -> None:
    with pytest.raises(ConfigError, match=r"at here:1 has none of (.|\n)*specpipe serve"):
        upstreams(models, "here:1")
