"""Accuracy is read off likelihoods: equal models read alike, coarser ones worse."""

import math
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from specpipe.core.contracts import Logits
from specpipe.core.engines import LoadedEngine
from specpipe.runtime.batcher import Batcher, alone
from specpipe.runtime.budget import Budget
from specpipe.runtime.tokens import TextTokenizer
from specpipe.speculate.decode import ContextLogits, read_context
from specpipe.validate.accuracy import ROWS, Text, read
from specpipe.validate.metrics import load_metrics
from specpipe.validate.questions import Questions
from specpipe.validate.reference import Reference
from specpipe.validate.trials import Arm, Likelihoods, Trial, Trials

ARMS: tuple[Arm, ...] = ("reference", "plain", "speculative")


@pytest.fixture(scope="module")
def texts(tiny: Path) -> list[Text]:
    """Return two prompts, one longer than a block, with the reference's answers."""
    rng, reference = np.random.default_rng(4), Reference(tiny)
    prompts = [tuple(rng.integers(3, 300, size).tolist()) for size in (5, 150)]
    return [Text(i, p, reference.generate(p, 20, ()).tokens) for i, p in enumerate(prompts)]


def read_by_reference(reference: Reference, texts: list[Text]) -> list[Likelihoods]:
    return [read(t, "reference", reference.read(t.tokens[:-1], ROWS)) for t in texts]


def read_by_engine(engine: LoadedEngine, texts: list[Text]) -> list[Likelihoods]:
    return [read(t, "plain", logits_of(engine, t.tokens[:-1])) for t in texts]


def logits_of(engine: LoadedEngine, tokens: Sequence[int]) -> Iterator[Logits]:
    batcher = Batcher({"target": engine}, 128, Budget())
    for event in alone(batcher, read_context(tokens)):
        assert isinstance(event, ContextLogits)
        yield event.logits


def trials(*readings: Likelihoods) -> Trials:
    return Trials(tuple(Trial(0, arm, "a", 1, 0.1, 0.2) for arm in ARMS), (), readings)


def metric(name: str, found: Trials) -> dict[Arm, float]:
    compute = next(m for m in load_metrics() if m.name == name).compute
    return {arm: figure.median for arm, figure in compute(found).items()}


def test_a_float32_engine_reads_as_the_reference_does(tiny: Path, texts, tiny_engine) -> None:
    theirs = read_by_reference(Reference(tiny), texts)
    ours = read_by_engine(tiny_engine, texts)
    for left, right in zip(theirs, ours, strict=True):
        assert left.prompt == right.prompt and (left.arm, right.arm) == ("reference", "plain")
        assert left.log_likelihoods == pytest.approx(right.log_likelihoods, abs=1e-3)
        assert all(left.chosen) and all(right.chosen) and len(left.chosen) == 20


def test_likelihoods_are_those_of_the_softmax(tiny: Path, texts) -> None:
    reading = read_by_reference(Reference(tiny), texts)[0]
    tokens = torch.tensor(texts[0].tokens)
    logits = torch.tensor(Reference(tiny).logits(tokens[:-1].tolist()))
    loss = torch.nn.functional.cross_entropy(logits, tokens[1:])
    assert -np.mean(reading.log_likelihoods) == pytest.approx(float(loss), rel=1e-4)


def test_four_bits_read_worse_than_thirty_two(tiny: Path, texts, make_engine) -> None:
    coarse = read_by_engine(make_engine(tiny, quantization="int4"), texts)
    found = trials(*read_by_reference(Reference(tiny), texts), *coarse)
    assert metric("greedy_agreement", found)["reference"] == 1
    assert 0 < metric("greedy_agreement", found)["plain"] < 1
    surprise = metric("perplexity", found)
    assert surprise["reference"] != surprise["plain"]


def test_perplexity_of_one_in_four_everywhere_is_four() -> None:
    quarter = Likelihoods(0, "plain", (math.log(0.25),) * 3, (True, False))
    assert metric("perplexity", trials(quarter)) == pytest.approx({"plain": 4})
    assert metric("greedy_agreement", trials(quarter)) == {"plain": 0.5}


def test_a_text_is_reduced_in_blocks_that_do_not_grow_with_it(texts) -> None:
    """The largest array in float64 has `ROWS` rows, whatever arrives at a time."""
    size, tokens = 5000, texts[1].tokens[:-1]
    logits = np.zeros((len(tokens), size), np.float32)
    tracemalloc.start()
    try:
        whole = read(texts[1], "plain", [logits])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * ROWS * size * 8 < 2 * len(tokens) * size * 8
    assert whole == read(texts[1], "plain", (logits[i : i + 7] for i in range(0, len(logits), 7)))
    assert whole.log_likelihoods == pytest.approx([-math.log(size)] * len(tokens))


@pytest.mark.parametrize(("length", "answer"), [(152, 2), (150, 0), (3, 0), (1, 0)])
def test_a_text_longer_than_a_server_can_be_asked_about_is_cut(texts, length, answer) -> None:
    cut = texts[1].cut(length)
    assert len(cut.tokens) == max(2, length) and len(cut.answer) == answer
    reading = read(cut, "plain", [np.zeros((len(cut.tokens) - 1, 400), np.float32)])
    assert len(reading.chosen) == answer


def test_every_token_weighs_the_same_whatever_its_text() -> None:
    long = Likelihoods(0, "reference", (math.log(0.5),) * 3, (True,) * 3)
    short = Likelihoods(1, "reference", (math.log(0.125),), (False,))
    found = trials(long, short)
    assert metric("perplexity", found)["reference"] == pytest.approx(2**1.5)
    assert metric("greedy_agreement", found)["reference"] == 0.75


def test_an_answer_is_counted_in_the_tokens_of_its_text(tiny: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    questions = Questions((), TextTokenizer(tokenizer, 300, (0,), 0, 4))
    text = "The quick brown fox"
    assert questions.count(text) == len(AutoTokenizer.from_pretrained(tiny).tokenize(text)) > 0
