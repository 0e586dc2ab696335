"""Packaged text models drive a C++ backend that refuses whatever upstream's refuses."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2 as pb

from specpipe.config.run_config import RunConfig, read_config
from specpipe.config.speculation import (
    DraftModel,
    Lookahead,
    Medusa,
    NoSpeculation,
    ReDrafter,
    Speculation,
)
from specpipe.config.upstream_methods import Eagle
from specpipe.core.contracts import Sampling
from specpipe.core.errors import Unsupported
from specpipe.core.model import ModelConfig
from specpipe.engine.tensorrt.profiles import engine_releases
from specpipe.plan.plan import make_requests
from specpipe.repository.description import read_endpoint
from specpipe.repository.render import parse
from specpipe.repository.write import RepositoryPlan, write_repository
from specpipe.runtime.exchange import EngineProgress, Request
from specpipe.runtime.failures import EngineError
from specpipe.serve.inputs import Options, token_request
from specpipe.speculate.decode import Limits
from tests.helpers.cpp_backend import (
    CppBackend,
    EngineLimits,
    EngineRequest,
    RefusedError,
    score_of,
)
from tests.helpers.python_backend import import_sources

VOCABULARY, END = 16, 15
LLAMA = ModelConfig(
    architecture="LlamaForCausalLM", dtype="bfloat16", hidden_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4, head_size=16, intermediate_size=128,
    vocab_size=VOCABULARY, max_position_embeddings=4096, norm_epsilon=1e-5, rotary_base=1e4,
)  # fmt: skip
BASE = read_config(Path("model_configs/llama8b_lookahead.yaml"))
TREE = ((0,), (1,), (0, 0))
METHODS: dict[str, Speculation] = {
    "none": NoSpeculation("none"),
    "draft_model": replace(
        read_config(Path("model_configs/llama70b_draft7b.yaml")).speculation, num_draft_tokens=3
    ),
    "medusa": Medusa("medusa", "heads", 3, TREE),
    "lookahead": Lookahead("lookahead", window_size=2, ngram_size=3, verification_set_size=2),
    "eagle": Eagle("eagle", "drafter").with_tree(TREE),
    "redrafter": ReDrafter("redrafter", "drafter", 2, 2),
}
RELEASES = ("0.18.2", "0.19.0", "1.2.1")
CASES = [
    (method, release)
    for method in METHODS
    for release in RELEASES
    if (method, release) != ("lookahead", "0.18.2")  # Triton cannot configure it
]
Serve = Callable[..., "Served"]


def following(sequence: tuple[int, ...]) -> int:
    """Return the next token of the engines' language: it counts, but for the end token."""
    return (sequence[-1] * 3 + len(sequence)) % END


def decode(asked: EngineRequest) -> Iterator[tuple[int, ...]]:
    """Verify a draft in one step, or decode two tokens a step."""
    sequence, left, width = list(asked.prompt), asked.max_tokens, 2
    if asked.draft is not None:
        accepted = 0
        while accepted < len(asked.draft) and following(tuple(sequence)) == asked.draft[accepted]:
            sequence.append(asked.draft[accepted])
            accepted += 1
        width = left = min(left, accepted + 1)
        sequence = sequence[: len(asked.prompt)]
    while left > 0:
        step = []
        for _ in range(min(width, left)):
            step.append(following(tuple(sequence)))
            sequence.append(step[-1])
        left -= len(step)
        yield tuple(step)


def expected(prompt: tuple[int, ...], count: int) -> list[int]:
    """Return the answer of plain decoding."""
    sequence = prompt
    for _ in range(count):
        sequence = (*sequence, following(sequence))
    return list(sequence[len(prompt) :])


class Served:
    """A packaged run whose engines are strict stand-ins."""

    def __init__(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.endpoint = read_endpoint(repository)
        options = config_of(repository, "tensorrt_llm_bls").parameters
        self.models = {
            name: CppBackend(config_of(repository, name), decode, limits_of(name, options))
            for name in ("tensorrt_llm", "tensorrt_llm_draft")
            if (repository / name).exists()
        }
        sources = import_sources(self.models, monkeypatch)
        values = {name: value.string_value for name, value in options.items()}
        self.source = sources.bls_source(values, "tensorrt_llm_bls")

    def answer(self, count: int, **changes: Any) -> list[EngineProgress]:
        request = Request("", (1, 2, 3), changes.pop("sampling", Sampling()), Limits(count))
        return list(self.source.loop(replace(request, **changes)))


def limits_of(name: str, options: Any) -> EngineLimits:
    drafts = int(options["num_draft_tokens"].string_value) if name == "tensorrt_llm" else 0
    return EngineLimits(max_draft_len=drafts, vocab_size=VOCABULARY)


def config_of(repository: Path, model: str) -> pb.ModelConfig:
    return parse((repository / model / "config.pbtxt").read_text())


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that packages a run of a method once."""

    @cache
    def run(method: str, release: str, streams: bool) -> Path:
        engine = replace(BASE.engine, tp_size=1, pp_size=1, tensorrt_llm=release)
        serving = replace(BASE.serving, decoupled=streams)
        speculation = METHODS[method]
        config = replace(BASE, engine=engine, serving=serving, speculation=speculation)
        return package(config, release, tmp_path_factory.mktemp("run"))

    return run


@pytest.fixture
def serve(packaged: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Return a function that serves a run of a method."""

    def run(method: str, release: str = "1.2.1", *, streams: bool = True) -> Served:
        return Served(packaged(method, release, streams), monkeypatch)

    return run


def package(config: RunConfig, release: str, folder: Path) -> Path:
    roles = ["target", "draft"] if isinstance(config.speculation, DraftModel) else ["target"]
    for name in (*roles, "tokenizer", "repository"):
        (folder / name).mkdir()
    plan = RepositoryPlan(
        config, {role: folder / role for role in roles}, folder / "tokenizer",
        make_requests(config, dict.fromkeys(roles, LLAMA)), release, Path("/models"),
    )  # fmt: skip
    write_repository(plan, folder / "repository")
    return folder / "repository"


def tokens(steps: list[EngineProgress]) -> list[int]:
    return [token for step in steps for token in step.tokens]


@pytest.mark.parametrize(
    ("method", "release", "streams"),
    [(*case, True) for case in CASES] + [(method, "1.2.1", False) for method in METHODS],
)
def test_every_method_of_every_release_is_answered(
    method: str, release: str, streams: bool, serve: Serve
) -> None:
    served = serve(method, release, streams=streams)
    steps = served.answer(9)
    assert tokens(steps) == expected((1, 2, 3), 9)
    assert served.models["tensorrt_llm"].requests


@pytest.mark.parametrize(("method", "release"), CASES)
def test_all_options_of_a_request_are_tensors_of_the_release(
    method: str, release: str, serve: Serve
) -> None:
    sampling = Sampling(
        temperature=0.7, top_k=5, top_p=0.9, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=0.1, min_tokens=2, end_ids=(END, 14), bad_words=((3, 4), (5,)), seed=7,
    )  # fmt: skip
    served = serve(method, release)
    steps = served.answer(6, sampling=sampling, bias=((3, 1.5),), log_probs=True)
    assert len(tokens(steps)) <= 6


@pytest.mark.parametrize(("method", "release"), CASES)
def test_no_draft_tokens_are_refused_where_an_engine_cannot_stop_drafting(
    method: str, release: str, serve: Serve
) -> None:
    served = serve(method, release)
    if method in ("medusa", "eagle", "redrafter"):
        with pytest.raises(Unsupported, match="in every step of every request"):
            served.answer(5, num_draft_tokens=0)
        return
    steps = served.answer(5, num_draft_tokens=0)
    assert tokens(steps) == expected((1, 2, 3), 5)
    assert steps[-1].counters.draft_tokens == 0


@pytest.mark.parametrize("method", ["none", "lookahead", "medusa"])
def test_streamed_scores_are_those_of_the_new_tokens(method: str, serve: Serve) -> None:
    """Every response of the engine has the scores of all tokens so far."""
    steps = serve(method).answer(7, log_probs=True)
    scores = [score for step in steps for score in step.log_probs]
    assert scores == pytest.approx([score_of(t, n) for n, t in enumerate(tokens(steps))])


def test_leaving_an_answer_stops_the_engine(serve: Serve) -> None:
    served = serve("medusa")
    steps = served.source.loop(Request("", (1, 2, 3), Sampling(), Limits(50)))
    next(steps)
    steps.close()
    assert len(served.models["tensorrt_llm"].stopped) == 1


@pytest.mark.parametrize(("method", "release"), [c for c in CASES if c[1] in engine_releases()])
@pytest.mark.parametrize("drafted", [None, 0])
def test_specpipes_own_client_sends_engines_what_they_take(
    method: str, release: str, drafted: int | None, serve: Serve
) -> None:
    served = serve(method, release)
    model = served.endpoint.tokens
    assert model is not None
    options = Options(5, temperature=0.5, top_k=3, seed=1, min_tokens=1, end_ids=(END, 14),
                      num_draft_tokens=drafted)  # fmt: skip
    try:
        asked = token_request(model, (1, 2, 3), options)
    except Unsupported:
        assert drafted == 0 and method in ("medusa", "eagle", "redrafter")
        return
    outputs = ["output_ids", "sequence_length"]
    answer = list(served.models["tensorrt_llm"].infer(asked.inputs, outputs, ""))
    found = [t for reply in answer for t in reply["output_ids"].reshape(-1).tolist()]
    assert found == expected((1, 2, 3), 5)


def one(value: object, kind: type) -> np.ndarray:
    return np.array([[value]], kind)


GOOD = {"input_ids": np.array([[1, 2, 3]], np.int32), "input_lengths": one(3, np.int32),
        "request_output_len": one(4, np.int32)}  # fmt: skip
SIZES = {"lookahead_window_size": one(1, np.int32), "lookahead_ngram_size": one(1, np.int32),
         "lookahead_verification_set_size": one(0, np.int32)}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_draft_tokens": one(1, np.int32)}, "unexpected inference input 'num_draft_tokens'"),
        ({"min_length": one(1, np.int32)}, "unexpected inference input 'min_length'"),
        (SIZES, "Cannot set the request lookahead decoding"),
        ({"input_ids": np.array([[1, 2]], np.int64)}, "int64, expects INT32"),
        ({"input_ids": np.array([1, 2], np.int32)}, "unexpected shape"),
        ({"input_ids": np.zeros((1, 70), np.int32), "input_lengths": one(70, np.int32)},
         "Prompt length"),
        ({"request_output_len": one(0, np.int32)}, "mMaxNewTokens"),
        ({"request_output_len": one(500, np.int32)}, "do not fit"),
        ({"input_lengths": one(2, np.int32)}, "input_lengths is 2"),
        ({"draft_input_ids": np.array([[1, 2]], np.int32)}, "Draft tokens length"),
        ({"draft_input_ids": np.zeros((1, 0), np.int32)}, "tokens are empty"),
        ({"stop_words_list": np.array([[[5, 6], [3, -1]]], np.int32)}, "out-of-bound"),
        ({"runtime_top_p": one(1.5, np.float32)}, "runtime_top_p is 1.5"),
        ({"stop": one(True, np.bool_)}, "request ID is not provided"),
    ],
)  # fmt: skip
def test_the_stand_in_refuses_what_upstream_refuses(
    changes: dict[str, np.ndarray], words: str, serve: Serve
) -> None:
    engine = serve("none").models["tensorrt_llm"]
    assert list(engine.infer(GOOD, ["output_ids", "sequence_length"], ""))
    with pytest.raises(RefusedError, match=words):
        list(engine.infer({**GOOD, **changes}, ["output_ids", "sequence_length"], ""))


def test_the_stand_in_streams_only_from_decoupled_models(serve: Serve) -> None:
    engine = serve("none", streams=False).models["tensorrt_llm"]
    with pytest.raises(RefusedError, match="Streaming is only supported"):
        list(engine.infer({**GOOD, "streaming": one(True, np.bool_)}, ["output_ids"], ""))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("lookahead_window_size", "", "lookahead parameters are not specified"),
        ("gpt_model_type", "", "Invalid gpt_model_type"),
        ("decoding_mode", "", "the backend would take its default"),
        ("enable_kv_cache_reuse", "${enable_kv_cache_reuse}", "placeholder"),
        ("tokenizer_dir", None, "tokenizer_dir is not in the file"),
    ],
)
def test_the_stand_in_does_not_load_with_parameters_that_upstream_cannot_use(
    name: str, value: str | None, words: str, serve: Serve
) -> None:
    config = serve("lookahead").models["tensorrt_llm"].config
    if value is None:
        del config.parameters[name]
    else:
        config.parameters[name].string_value = value
    with pytest.raises(RefusedError, match=words):
        CppBackend(config, decode)


def test_a_refusal_of_the_engine_reaches_the_client_in_its_words(serve: Serve) -> None:
    with pytest.raises(EngineError, match="Prompt length"):
        served = serve("none")
        list(served.source.loop(Request("", tuple([1] * 70), Sampling(), Limits(5))))
