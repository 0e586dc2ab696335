"""The promise of the README on the real model: greedy answers are those of transformers."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from specpipe.config.run_config import RunConfig, read_config
from specpipe.core.artifacts import Workspace
from specpipe.run.run import Run
from specpipe.run.stages import build
from specpipe.runtime.tokens import load_tokenizer
from specpipe.serve.address import free_address
from specpipe.serve.client import Client, Options, collect
from specpipe.serve.tritonserver import start_server
from specpipe.validate.questions import load_prompts
from specpipe.validate.reference import Reference
from tests.helpers.models import SMOLLM2

pytestmark = [pytest.mark.e2e, pytest.mark.model]

CONFIGS = [
    f"smollm2-135m_{name}"
    for name in (
        "none",
        "prompt-lookup",
        "draft-model",
        "medusa",
        "redrafter",
        "lookahead",
        "hybrid",
    )
]
TOKENS = 24


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smollm2")


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(SMOLLM2)


@pytest.fixture(scope="module")
def answers(root: Path, reference: Reference) -> list[tuple[list[int], list[int]]]:
    """Return 20 prompts as tokens, and what transformers answers in float32."""
    config, workspace = built(CONFIGS[0], root)
    prompts, end_ids = load_prompts(config, workspace.repository / "preprocessing/1/tokenizer")
    return [(p, list(reference.generate(p, TOKENS, end_ids).tokens)) for p in prompts]


def built(name: str, root: Path) -> tuple[RunConfig, Workspace]:
    """Build a shipped run in float32, where answers are exact."""
    config = read_config(Path(f"model_configs/{name}.yaml"))
    config = replace(
        config,
        engine=replace(config.engine, dtype="float32", quantization="none"),
        validate=replace(config.validate, num_prompts=20),
    )
    workspace = Workspace(root, config.name)
    build(Run(config, workspace))
    return config, workspace


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_answers_are_those_of_transformers(name: str, root: Path, answers) -> None:
    """Several requests at a time, so that they share the engine's steps."""
    config, workspace = built(name, root)
    with start_server(workspace.repository, free_address(), root / f"{name}.log") as endpoint:
        client = Client(endpoint.address.grpc)

        def ask(prompt: list[int]) -> list[int]:
            options = Options(max_tokens=TOKENS, end_id=2)
            return list(collect(client.stream_tokens(prompt, options)).tokens)

        with ThreadPoolExecutor(config.engine.max_batch_size) as threads:
            found = list(threads.map(ask, [prompt for prompt, _ in answers]))
    for number, (_, expected) in enumerate(answers):
        assert found[number] == expected, f"prompt {number}"
    assert len(answers) == 20


QUESTIONS = (
    "The capital of France is",
    "Once upon a time there was a small robot who",
    "Water boils at 100 degrees, and it freezes at",
    "def fibonacci(n):\n    ",
    "List three colours: red, blue and",
)


def test_the_loop_over_draft_and_target_in_triton_answers_as_transformers(
    root: Path, reference: Reference
) -> None:
    """The repository for GPUs with a real draft and target; only the engines are the CPU's."""
    config = read_config(Path("model_configs/smollm2-135m_draft-model_bls.yaml"))
    config = replace(config, engine=replace(config.engine, dtype="float32"))
    workspace = Workspace(root, config.name)
    build(Run(config, workspace))
    tokenizer = load_tokenizer(workspace.repository / "preprocessing/1/tokenizer")
    with start_server(workspace.repository, free_address(), root / "bls.log") as endpoint:
        client = Client(endpoint.address.grpc)
        for text in QUESTIONS:
            tokens = reference.generate(tokenizer.encode(text, 100), TOKENS, 2).tokens
            answer = collect(client.stream(text, Options(max_tokens=TOKENS, end_id=2)))
            assert answer.text == tokenizer.decode(list(tokens)), text
            assert answer.acceptance.draft_tokens > 0
