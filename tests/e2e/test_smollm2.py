"""The promise of the README on the real model: greedy answers are those of transformers."""

from collections.abc import Sequence
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

PROMPTS = 12  # more than the engine serves at a time
EXHAUSTIVE = ("none", "prompt-lookup", "draft-model", "medusa", "redrafter", "lookahead")
RUNS = ["hybrid", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in EXHAUSTIVE)]
TOKENS = 24
END = 2


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smollm2")


@pytest.fixture(scope="module")
def judge() -> "Judge":
    return Judge(Reference(SMOLLM2))


class Judge:
    """Transformers in float32, which reads an answer at once: greedy decoding by induction.

    If the model's best token after the prompt and after every token of an answer is the next token
    of that answer, then the answer is what greedy decoding gives. An answer is read once, however
    often it is given.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._read: dict[tuple[int, ...], list[int]] = {}

    def best(self, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
        """Return the model's best token at every place of `answer`, up to the first end token."""
        tokens = (*prompt, *answer)
        if tokens not in self._read:
            logits = self.reference.logits(tokens[:-1])[len(prompt) - 1 :]
            self._read[tokens] = [int(row.argmax()) for row in logits]
        found = self._read[tokens]
        ends = [n for n, token in enumerate(found) if token in self.reference.end_ids]
        return found[: ends[0] + 1] if ends else found


def built(name: str, root: Path) -> tuple[RunConfig, Workspace]:
    """Build a shipped run in float32, where answers are exact."""
    config = read_config(Path(f"model_configs/smollm2-135m_{name}.yaml"))
    config = replace(
        config,
        engine=replace(config.engine, dtype="float32", quantization="none"),
        validate=replace(config.validate, num_prompts=PROMPTS),
    )
    workspace = Workspace(root, config.name)
    build(Run(config, workspace))
    return config, workspace


@pytest.mark.parametrize("name", RUNS)
def test_greedy_answers_are_those_of_transformers(name: str, root: Path, judge: Judge) -> None:
    """Several requests at a time, so that they share the engine's steps."""
    config, workspace = built(name, root)
    prompts, _ = load_prompts(config, workspace.repository / "preprocessing/1/tokenizer")
    with start_server(workspace.repository, free_address(), root / f"{name}.log") as endpoint:
        client = Client(endpoint.address.grpc)

        def ask(prompt: list[int]) -> list[int]:
            options = Options(max_tokens=TOKENS, end_id=END)
            return list(collect(client.stream_tokens(prompt, options)).tokens)

        with ThreadPoolExecutor(config.engine.max_batch_size) as threads:
            answers = list(threads.map(ask, prompts))
    assert len(answers) == PROMPTS > config.engine.max_batch_size
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer == judge.best(prompt, answer), prompt
        assert len(answer) == TOKENS or answer[-1] == END, prompt


QUESTIONS = (
    "The capital of France is",
    "Once upon a time there was a small robot who",
    "Water boils at 100 degrees, and it freezes at",
    "def fibonacci(n):\n    ",
    "List three colours: red, blue and",
)


@pytest.mark.exhaustive
def test_the_loop_over_draft_and_target_in_triton_answers_as_transformers(
    root: Path, judge: Judge
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
            answer = collect(client.stream(text, Options(max_tokens=TOKENS, end_id=END)))
            prompt = tokenizer.encode(text, 100)
            tokens = judge.reference.generate(prompt, TOKENS, [END]).tokens
            assert answer.text == tokenizer.decode(list(tokens)), text
            assert answer.acceptance.draft_tokens > 0
