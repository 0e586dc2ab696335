"""The endpoints that each backend describes, compared with TensorRT-LLM's tables of tensors."""

from dataclasses import replace
from pathlib import Path

import pytest

from specpipe.config.run_config import RunConfig, read_config
from specpipe.core.conversation import ChatTemplate
from specpipe.core.endpoint import (
    ClientTemplate,
    DraftLimit,
    Endpoint,
    Model,
    Serving,
    dump_endpoint,
    load_endpoint,
)
from specpipe.core.errors import ConfigError
from specpipe.engine.llmapi.backend import LlmApiBackend
from specpipe.engine.tensorrt.backend import TensorRtBackend
from specpipe.repository.signature import served_signature, table_of
from specpipe.runtime.assembly import describe_endpoint, load_backend

TENSORRT, LLMAPI = TensorRtBackend(), LlmApiBackend()
OWN_LOOP = ("medusa", "eagle", "redrafter")  # engines that speculate in every request


def config(name: str) -> RunConfig:
    return read_config(Path(f"model_configs/{name}.yaml"))


def declared(model: Model, signature: str, table: str = "1x") -> None:
    """Check every name of a description against what upstream's model of that release declares."""
    names, found = model.tensors, served_signature(signature, table)
    inputs = {tensor.name for tensor in found.inputs}
    outputs = {tensor.name for tensor in found.outputs}
    asked = {names.prompt, names.max_tokens, names.stream, names.exclude_prompt, *names.flags}
    asked |= {*names.options.values(), names.prompt_length, names.stop_tokens, names.chat} - {""}
    assert asked <= inputs and {names.answer} <= outputs
    assert {names.drafted, names.accepted, names.output_tokens} - {""} <= outputs


@pytest.mark.parametrize("release", ["1.2.1", "0.18.2"])
@pytest.mark.parametrize("method", ["none", "draft_model", *OWN_LOOP])
def test_the_names_for_engines_are_those_that_their_release_declares(
    release: str, method: str
) -> None:
    endpoint = TENSORRT.endpoint(Serving(method, 4, release=release))
    for model in endpoint.texts:
        declared(model, model.name, table_of(release))
    assert endpoint.tokens is not None
    declared(endpoint.tokens, "tensorrt_llm", table_of(release))
    assert endpoint.tokens.reports_acceptance == (release == "1.2.1")


def test_the_names_of_the_llm_api_are_those_that_it_declares() -> None:
    endpoint = LLMAPI.endpoint(Serving("eagle3", 3))
    declared(endpoint.text, "llmapi/tensorrt_llm")
    assert endpoint.text.reports_acceptance and not endpoint.text.tensors.output_tokens


def test_the_cpu_engine_takes_a_limit_by_every_way_to_it() -> None:
    endpoint = describe_endpoint(config("smollm2-135m_prompt-lookup"))
    bls, ensemble = endpoint.texts
    assert endpoint.text is bls and bls.name == "tensorrt_llm_bls"
    assert bls.draft_limit == DraftLimit("tensor", 4, any_number=True)
    assert ensemble.draft_limit == DraftLimit("parameter", 4, any_number=True)
    assert endpoint.tokens is not None and endpoint.tokens.decoupled
    assert endpoint.tokens.draft_limit == DraftLimit("parameter", 4, any_number=True)
    assert endpoint.tokenizer == "preprocessing/1/tokenizer"


def test_a_run_without_speculation_is_plain_and_has_no_limit() -> None:
    endpoint = TENSORRT.endpoint(Serving("none"))
    for model in (*endpoint.texts, endpoint.tokens):
        assert model is not None and not model.speculates and model.draft_limit is None
        assert model.can_decode_plainly


@pytest.mark.parametrize("name", ["smollm2-135m_draft-model_bls", "llama33-70b_draft1b_fp8"])
def test_with_a_draft_model_in_triton_the_text_speculates_and_the_target_does_not(
    name: str,
) -> None:
    endpoint = describe_endpoint(config(name))
    assert endpoint.text.speculates and endpoint.text.draft_limit is not None
    assert endpoint.text.draft_limit.any_number and endpoint.text.decoupled
    assert endpoint.tokens is not None
    assert not endpoint.tokens.speculates and not endpoint.tokens.decoupled


@pytest.mark.parametrize("method", OWN_LOOP)
def test_an_engine_that_ignores_requests_speculates_in_all_of_them(method: str) -> None:
    endpoint = TENSORRT.endpoint(Serving(method, 16, any_number=True))
    for model in (*endpoint.texts, endpoint.tokens):
        assert model is not None and model.speculates and not model.can_decode_plainly


def test_a_lookahead_engine_is_turned_off_by_its_sizes() -> None:
    endpoint = TENSORRT.endpoint(Serving("lookahead", 15))
    assert endpoint.tokens is not None
    assert endpoint.tokens.draft_limit == DraftLimit("lookahead", 15)
    assert endpoint.text.draft_limit == DraftLimit("tensor", 15)


def test_the_llm_api_is_one_model_that_cannot_be_limited() -> None:
    endpoint = LLMAPI.endpoint(Serving("mtp", 1, streams=False))
    assert endpoint.tokens is None and [m.name for m in endpoint.texts] == ["tensorrt_llm"]
    model = endpoint.text
    assert not model.batched and model.cumulative and not model.decoupled
    assert model.speculates and not model.can_decode_plainly


def test_an_unknown_name_is_answered_with_those_that_there_are() -> None:
    endpoint = TENSORRT.endpoint(Serving("none"))
    assert endpoint.named("ensemble").name == "ensemble"
    with pytest.raises(ConfigError, match=r"gpt4 (.|\n)*tensorrt_llm_bls, ensemble"):
        endpoint.named("gpt4")


def test_a_description_survives_its_journey_as_text() -> None:
    for endpoint in (
        TENSORRT.endpoint(Serving("lookahead", 15)),
        LLMAPI.endpoint(Serving("eagle3", 3)),
        Endpoint((Model("m", LLMAPI.endpoint(Serving("none")).text.tensors),), None, "x",
                 chats=True, template=ClientTemplate(
                     ChatTemplate({"default": "<|user|>\u2028\U0001f600", "rag": "\n"},
                                  {"bos_token": "<s>", "additional": ["<a>", "<b>"]}),
                     "<s>", ("<s>", "<a>"))),
    ):  # fmt: skip
        assert load_endpoint(dump_endpoint(endpoint), "here") == endpoint


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"texts": [{}]}', '{"texts": 3}'])
def test_what_is_no_description_is_a_sentence_with_a_hint(text: str) -> None:
    with pytest.raises(ConfigError, match=r"the server at x is not described (.|\n)*package"):
        load_endpoint(text, "the server at x")


@pytest.mark.parametrize("method", ["prompt_lookup", "lookahead", "medusa", "draft_model", "none"])
def test_the_rehearsal_of_a_gpu_run_is_called_as_that_run(method: str) -> None:
    rehearsed = load_backend("openvino").endpoint(Serving(method, 4, True, loop="bls"))
    assert rehearsed.tokens is not None
    names = replace(rehearsed.tokens.tensors, context_flag="", context_logits="")
    own = replace(rehearsed, tokens=replace(rehearsed.tokens, tensors=names))
    assert own == TENSORRT.endpoint(Serving(method, 4, True))  # but for the logits of a prompt
