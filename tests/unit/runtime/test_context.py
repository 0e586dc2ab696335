"""`return_context_logits`: the rows of a prompt are those of transformers, in bounded blocks."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from specpipe.config.speculation import NoSpeculation
from specpipe.core.contracts import Logits, Sampling
from specpipe.core.engines import LoadedEngine
from specpipe.core.errors import ConfigError
from specpipe.runtime.assembly import Runtime
from specpipe.runtime.batcher import Batcher, alone
from specpipe.runtime.budget import Budget
from specpipe.runtime.context import MOST_BYTES, ContextCollector, check_size
from specpipe.runtime.decoder import DeploymentDecoder
from specpipe.runtime.exchange import Counters, Request
from specpipe.runtime.scheduler import Scheduler
from specpipe.runtime.verifying import Prefixes, read_prompt
from specpipe.speculate import decode
from specpipe.speculate.decode import CONTEXT_BLOCK, Limits, Step, read_context
from specpipe.validate.reference import Reference

PROMPT = np.random.default_rng(4).integers(3, 300, 150).tolist()


@pytest.fixture(scope="module")
def expected(tiny: Path) -> Logits:
    return Reference(tiny).logits(PROMPT)


def batcher(engine: LoadedEngine) -> Batcher:
    return Batcher({"target": engine}, 128, Budget())


LENGTHS = [1, 2, CONTEXT_BLOCK - 1, CONTEXT_BLOCK, CONTEXT_BLOCK + 1, 150]


@pytest.mark.parametrize("length", LENGTHS)
def test_the_rows_are_those_of_transformers(length: int, tiny_engine, expected: Logits) -> None:
    blocks = [
        event.logits
        for event in alone(batcher(tiny_engine), read_context(PROMPT[:length]))
        if isinstance(event, decode.ContextLogits)
    ]
    assert all(len(block) <= CONTEXT_BLOCK for block in blocks)
    np.testing.assert_allclose(np.concatenate(blocks), expected[:length], atol=1e-3)


def test_another_sequence_may_run_between_two_blocks(tiny_engine, expected: Logits) -> None:
    both = batcher(tiny_engine)
    stream = both.add(read_context(PROMPT))
    blocks = []
    while stream in both.streams:
        other = both.add(read_context(PROMPT[::-1][:70]))
        found = dict(both.round())
        assert other in found
        blocks += [event.logits for owner, event in found.items() if owner is stream]
        both.remove(other)
    np.testing.assert_allclose(np.concatenate(blocks), expected, atol=1e-3)


@dataclass
class Listener:
    rows: list[Logits] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def is_cancelled(self) -> bool:
        return False

    def on_logits(self, rows: Logits) -> None:
        assert not self.tokens
        self.rows.append(rows)

    def on_step(self, step: Step, counters: Counters) -> None:
        self.tokens += step.tokens
        if step.finish:
            self.ended.set()

    def on_stopped(self, counters: Counters) -> None:
        self.ended.set()

    def on_cancelled(self) -> None:
        self.ended.set()

    def on_error(self, error: Exception) -> None:
        self.ended.set()


def test_the_thread_of_the_engine_reads_the_prompt_and_then_decodes(
    tiny_engine, expected: Logits
) -> None:
    deployment = Runtime({"target": tiny_engine}, NoSpeculation())
    scheduler = Scheduler(DeploymentDecoder(deployment, Budget()), 1, 1)
    listener = Listener()
    scheduler.start()
    try:
        limits = Limits(max_tokens=3)
        scheduler.submit(
            Request("", tuple(PROMPT), Sampling(), limits, context_logits=True), listener
        )
        assert listener.ended.wait(60)
    finally:
        scheduler.close()
    np.testing.assert_allclose(np.concatenate(listener.rows), expected, atol=1e-3)
    assert listener.tokens[0] == int(expected[-1].argmax())


def test_the_emulator_of_the_gpu_engine_reads_it_too(tiny_engine, expected: Logits) -> None:
    prefixes = Prefixes(tiny_engine, most=1)
    for _ in range(2):  # the second time the sequence is known
        found = read_prompt(PROMPT, prefixes).outputs()["context_logits"]
        assert found.shape == (1, 150, expected.shape[1])
        np.testing.assert_allclose(found[0], expected, atol=1e-3)


def test_logits_too_large_to_be_sent_are_refused_with_the_bound() -> None:
    words = (
        "return_context_logits is true and the prompt has 1366 tokens: at most 1365 are allowed "
        "with it, whose logits over 49152 tokens are 256 MiB"
    )
    check_size(1365, 49152)
    with pytest.raises(ConfigError, match=words):
        check_size(1366, 49152)
    with pytest.raises(ConfigError, match="at most 1365"):
        ContextCollector.of(MOST_BYTES, 49152)
