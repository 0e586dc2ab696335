"""Guides over engines of TensorRT-LLM: which runs take them, what reaches the engine, and what is
refused before it does.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from specpipe.core.contracts import Sampling
from specpipe.core.endpoint import Serving
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.core.guide import Guide
from specpipe.repository.signature import signatures, table_of
from specpipe.repository.tokenizer_info import INFO, INFO_PATH
from specpipe.runtime.assembly import load_backend
from specpipe.runtime.triton.unsupported import refuse_unsupported
from specpipe.serve.inputs import Options, text_request
from tests.helpers.cpp_backend import RefusedError
from tests.helpers.packaged_gpu import END, METHODS, VOCABULARY, Serve, config_of

GUIDES = (
    Guide("json"),
    Guide("json_schema", '{"enum": [1]}'),
    Guide("regex", "é+"),
    Guide("ebnf_grammar", 'root ::= "a"'),
)
KIND, TEXT = "guided_decoding_guide_type", "guided_decoding_guide"


@pytest.fixture(autouse=True)
def xgrammar(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put a stand-in of xgrammar in place; return what it has read."""
    seen: list[str] = []

    def read(text: str) -> None:
        if text.endswith("("):
            raise RuntimeError(
                "[10:12:13] /project/cpp/regex_converter.cc:75: Regex parsing error at position 3: "
                "The parenthesis is not closed.\n"
            )
        seen.append(text)

    grammar = SimpleNamespace(from_json_schema=read, from_regex=read, from_ebnf=read)
    monkeypatch.setitem(sys.modules, "xgrammar", SimpleNamespace(Grammar=grammar))
    return seen


@pytest.mark.parametrize("release", ["0.19.0", "1.2.1"])
@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.kind)
def test_a_guide_reaches_an_engine_without_drafts(
    guide: Guide, release: str, serve: Serve, xgrammar: list[str]
) -> None:
    served = serve("none", release)
    assert served.ask(guide) == [len(guide.kind), len(guide.text), END][:3]
    assert xgrammar == ([guide.text] if guide.text else [])
    assert len(served.models["tensorrt_llm"].requests) == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("release", ["0.18.2", "0.19.0", "1.2.1"])
def test_the_parameters_the_file_and_the_endpoint_agree_on_who_takes_guides(
    method: str, release: str, packaged: Callable[..., Path]
) -> None:
    if (method, release) == ("lookahead", "0.18.2"):
        return  # Triton cannot configure it
    repository = packaged(method, release, True)
    named = INFO_PATH in signatures(table_of(release))["tensorrt_llm"].parameters
    assert named == (release != "0.18.2")
    takes = named and method == "none"
    parameters = {
        name: value.string_value
        for name, value in config_of(repository, "tensorrt_llm").parameters.items()
    }
    path = f"/models/tensorrt_llm/1/{INFO}" if takes else ""
    assert parameters.get(INFO_PATH, "") == path
    assert parameters.get("guided_decoding_backend", "") == ("xgrammar" if takes else "")
    assert (repository / "tensorrt_llm/1" / INFO).exists() == takes
    for text in ("ensemble", "tensorrt_llm_bls"):
        guides = config_of(repository, text).parameters["guides"].string_value
        assert guides == ("xgrammar" if takes else "")
    endpoint = load_backend("tensorrt").endpoint(Serving(method, 3, True, release=release))
    assert [bool(model.tensors.guide_kind) for model in endpoint.texts] == [takes, takes]
    assert endpoint.tokens is not None and not endpoint.tokens.tensors.guide_kind


def test_a_client_sends_a_guide_to_such_a_run_and_not_to_one_with_drafts() -> None:
    plain, drafting = (
        load_backend("tensorrt").endpoint(Serving(method, 3)) for method in ("none", "medusa")
    )
    options = Options(5, guide=GUIDES[2])
    sent = text_request(plain.text, "x", options, stream=False).inputs
    assert sent[KIND].reshape(-1).tolist() == [b"regex"]
    with pytest.raises(Unsupported, match="without draft tokens"):
        text_request(drafting.text, "x", options, stream=False)


@pytest.mark.parametrize(
    ("method", "release"), [("none", "0.18.2"), *((m, "1.2.1") for m in METHODS if m != "none")]
)
def test_a_text_model_over_another_engine_refuses_a_guide(
    method: str, release: str, serve: Serve
) -> None:
    tensors = {KIND: np.array([[b"json"]], object)}
    with pytest.raises(Unsupported, match=r"from 0.19 on and without drafts \(method: none\)"):
        refuse_unsupported(tensors, serve(method, release).source.supported)
    refuse_unsupported(tensors, serve("none").source.supported)


@pytest.mark.parametrize(
    ("guide", "error", "words"),
    [
        (Guide("regex", "a("), ConfigError,
         "^the regular expression cannot be used: Regex parsing error at position 3: The paren"),
        (Guide("json_schema", "("), ConfigError, "the JSON schema cannot be used: Regex"),
        (Guide("ebnf_grammar", 'start: "a"'), Unsupported, "not in GBNF"),
    ],
)  # fmt: skip
def test_a_guide_that_xgrammar_cannot_read_never_reaches_the_engine(
    guide: Guide, error: type[Exception], words: str, serve: Serve
) -> None:
    """There it would end every request in flight."""
    served = serve("none")
    with pytest.raises(error, match=words):
        served.ask(guide)
    assert not served.models["tensorrt_llm"].requests


def test_without_xgrammar_no_guide_reaches_the_engine(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    served = serve("none")
    with pytest.raises(Unsupported, match="needs the package xgrammar"):
        served.ask(Guide("regex", "a"))
    assert not served.models["tensorrt_llm"].requests


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        (Sampling(end_ids=(END,), min_tokens=2), "min_tokens with a guide"),
        (Sampling(end_ids=(3,)), "end_id with a guide"),
        (Sampling(), "end_id with a guide"),
    ],
)
def test_a_request_whose_end_is_not_that_of_its_guide_is_refused(
    sampling: Sampling, words: str, serve: Serve
) -> None:
    served = serve("none")
    with pytest.raises(Unsupported, match=words):
        served.ask(Guide("regex", "a"), sampling=sampling)
    assert not served.models["tensorrt_llm"].requests


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({KIND: b"yaml", TEXT: b"x"}, "yaml would be ignored"),
        ({KIND: b"regex"}, "guide string must be provided"),
    ],
)
def test_the_stand_in_refuses_guides_that_upstream_ignores(
    changes: dict[str, bytes], words: str, serve: Serve
) -> None:
    guide = {name: np.array([[value]], object) for name, value in changes.items()}
    given = {
        "input_ids": np.array([[1, 2, 3]], np.int32),
        "input_lengths": np.array([[3]], np.int32),
        "request_output_len": np.array([[4]], np.int32),
    }
    engine = serve("none").models["tensorrt_llm"]
    with pytest.raises(RefusedError, match=words):
        list(engine.infer({**given, **guide}, ["output_ids", "sequence_length"], ""))
    good = {KIND: np.array([[b"json"]], object)}
    with pytest.raises(RefusedError, match="no guided decoder"):
        engine = serve("medusa").models["tensorrt_llm"]
        list(engine.infer({**given, **good}, ["output_ids", "sequence_length"], ""))


def test_the_file_is_the_same_every_time(packaged: Callable[..., Path]) -> None:
    files = [packaged("none", release, True) for release in ("0.19.0", "1.2.1")]
    texts = [(file / "tensorrt_llm/1" / INFO).read_text() for file in files]
    assert texts[0] == texts[1]
    assert len(json.loads(texts[0])["encoded_vocab"]) == VOCABULARY
