"""EAGLE-3 on the CPU engine from end to end: a batch of answers equals those of transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from specpipe.config.method_parts import Eagle3Draft, Eagle3Options
from specpipe.config.speculation import PLAIN, Eagle3, Hybrid, Speculation
from specpipe.core.contracts import Sampling
from specpipe.core.engines import LoadedEngine
from specpipe.runtime.assembly import Runtime
from specpipe.speculate.decode import Limits, Step
from tests.helpers.eagle3 import make_eagle3

DRAFT = Eagle3Draft("unused")
METHODS: dict[str, Speculation] = {
    "chain": Eagle3("eagle3", DRAFT, 3, draft_length="fixed"),
    "tree": Eagle3("eagle3", DRAFT, 8, "dynamic", 3, 3, draft_length="fixed"),
    "adaptive": Eagle3("eagle3", DRAFT, 8, "dynamic", 3, 3),
    "with prompt lookup": Hybrid(
        "hybrid", None, 8, 1, 3, eagle3=Eagle3Options("unused", 2, 3), draft_length="fixed"
    ),
}
PROMPTS = [[5, 9, 40, 41, 42, 9, 40], [1, 2], list(range(70)), [7, 7, 7, 7], list(range(70))]


@pytest.fixture(scope="module")
def engine(tiny: Path, make_engine, tmp_path_factory: pytest.TempPathFactory) -> LoadedEngine:
    return make_engine(tiny, eagle3=make_eagle3(tmp_path_factory.mktemp("drafter")))


@pytest.fixture(scope="module")
def expected(tiny: Path) -> list[list[int]]:
    """Return the greedy answers of transformers in float32, one prompt at a time."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    answers = []
    for prompt in PROMPTS:
        out = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=24, eos_token_id=None
        )
        answers.append(out[0, len(prompt) :].tolist())
    return answers


def batch_of_answers(engine: LoadedEngine, options: Speculation, sampling: Sampling) -> Any:
    """Return the tokens of all prompts, decoded together, and the sum of accepted draft tokens."""
    runtime = Runtime({"target": engine}, options)
    batcher, accepted = runtime.batcher(), 0
    streams = [
        runtime.add(batcher, runtime.decoding(prompt, sampling, Limits(24))) for prompt in PROMPTS
    ]
    answers: dict[Any, list[int]] = {stream: [] for stream in streams}
    while batcher.streams:
        for stream, event in batcher.round():
            assert isinstance(event, Step), event
            answers[stream] += event.tokens
            accepted += event.accepted
    return list(answers.values()), accepted


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_greedy_answers_equals_transformers(
    method: str, engine: LoadedEngine, expected: list[list[int]]
) -> None:
    answers, _ = batch_of_answers(engine, METHODS[method], Sampling())
    assert answers == expected


@pytest.mark.parametrize("method", METHODS)
def test_with_a_seed_sampled_answers_equal_plain_decoding(
    method: str, engine: LoadedEngine
) -> None:
    sampling = Sampling(top_k=0, temperature=0.8, seed=5)
    plain, _ = batch_of_answers(engine, PLAIN, sampling)
    answers, _ = batch_of_answers(engine, METHODS[method], sampling)
    assert answers == plain


def test_drafts_are_dropped_while_the_drafters_pool_is_full(
    engine: LoadedEngine, expected: list[list[int]]
) -> None:
    pool = engine.layer.pool  # type: ignore[attr-defined]
    held = pool.open()
    pool.reserve(held, pool.free * 32)
    answers, accepted = batch_of_answers(engine, METHODS["chain"], Sampling())
    held.release()
    assert answers == expected and accepted == 0
