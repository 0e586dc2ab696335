"""Long prompts: read in chunks, in steps that others share, and anybody may leave in between."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from specpipe.config.method_parts import DraftOptions
from specpipe.config.speculation import DraftModel, NoSpeculation, Speculation
from specpipe.core.contracts import Sampling, Scores
from specpipe.core.engines import Item
from specpipe.runtime.assembly import Runtime
from specpipe.runtime.budget import Budget
from specpipe.runtime.decoder import DeploymentDecoder
from specpipe.runtime.exchange import Request
from specpipe.runtime.scheduler import Scheduler
from specpipe.speculate.decode import Limits
from tests.helpers.listener import Listener
from tests.helpers.scripted_engine import ScriptedCache, ScriptedEngine
from tests.helpers.scripted_model import random_distribution

VOCAB, ROWS = 8, 10
TARGET = random_distribution(VOCAB, seed=1)
GREEDY = Sampling()


@dataclass
class Gate:
    """Notes the steps of engines in one log; a test lets them go on step by step."""

    log: list[list[str]] = field(default_factory=list)
    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    called: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    reached: int = 0  # step, by `run_to`; the log may be ahead of it

    def step(self, parts: list[str]) -> None:
        self.log.append(parts)
        self.called.release()
        assert self.permits.acquire(timeout=10)

    def run_to(self, steps: int) -> None:
        """Let the engines go on until they stand in their step number `steps`, from 1."""
        while self.reached < steps:
            if self.reached:
                self.permits.release()
            assert self.called.acquire(timeout=10)
            self.reached += 1

    def run_freely(self) -> None:
        self.permits.release(100_000)


@dataclass(eq=False)
class GatedEngine(ScriptedEngine):
    """Notes `3:chunk` or `3:step` for the sequence that begins with token 3."""

    gate: Gate = field(default_factory=Gate)
    name: str = ""

    def step(self, items: Sequence[Item]) -> list[Scores]:
        self.gate.step([self.part(item) for item in items])
        return super().step(items)

    def part(self, item: Item) -> str:
        assert isinstance(item.cache, ScriptedCache)
        first = [*item.cache.tokens, *item.tokens.tolist()][0]
        return f"{first}:{self.name}{'step' if len(item.wanted) else 'chunk'}"


class Rig:
    def __init__(self, batch: int, options: Speculation | None = None) -> None:
        self.gate = Gate()
        self.engines = {
            "target": GatedEngine(TARGET, VOCAB, gate=self.gate),
            "draft": GatedEngine(TARGET, VOCAB, gate=self.gate, name="draft "),
        }
        used = {
            role: engine for role, engine in self.engines.items() if options or role == "target"
        }
        self.deployment = Runtime(used, options or NoSpeculation(), ROWS)  # type: ignore[arg-type]
        decoder = DeploymentDecoder(self.deployment, Budget())
        self.scheduler = Scheduler(decoder, batch, max_queue_size=10)

    @property
    def log(self) -> list[list[str]]:
        return self.gate.log

    def submit(self, first: int, length: int, tokens: int, request_id: str = "") -> Listener:
        listener = Listener()
        prompt = (first, *[0] * (length - 1))
        request = Request(request_id, prompt, GREEDY, Limits(tokens))
        self.scheduler.submit(request, listener)
        return listener


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(3)
    yield made
    made.gate.run_freely()
    made.scheduler.close()


def test_a_stream_emits_a_token_in_every_step_that_reads_a_long_prompt(rig: Rig) -> None:
    stream = rig.submit(1, length=1, tokens=1000)
    long = rig.submit(2, length=10 * ROWS, tokens=1)
    rig.scheduler.start()
    rig.gate.run_freely()
    assert long.ended.wait(10) and long.outcome == "finished"
    stream.cancel = True
    assert stream.ended.wait(10)
    chunks = [parts for parts in rig.log if "2:chunk" in parts]
    assert chunks == [["1:step", "2:chunk"]] * 11  # 9 rows each, beside the one of the stream
    assert sum("2:step" in parts for parts in rig.log) == 1


def test_no_step_has_more_rows_than_its_bound(rig: Rig) -> None:
    lengths = (1, 7, 45, 30, 3, 11, 10)
    listeners = [rig.submit(n, length, tokens=20) for n, length in enumerate(lengths)]
    rig.scheduler.start()
    rig.gate.run_freely()
    assert all(listener.ended.wait(10) for listener in listeners)
    assert max(rig.engines["target"].rows) == ROWS
    assert [listener.outcome for listener in listeners] == ["finished"] * len(lengths)


def test_prompts_are_read_in_order_of_arrival_beside_a_stream(rig: Rig) -> None:
    stream = rig.submit(1, length=1, tokens=1000)
    readers = [rig.submit(n, length=5 * ROWS, tokens=1) for n in (2, 3)]
    rig.scheduler.start()
    rig.gate.run_freely()
    assert all(reader.ended.wait(10) for reader in readers)
    stream.cancel = True
    assert stream.ended.wait(10)
    reading = [parts for parts in rig.log if len(parts) > 1]
    assert all("1:step" in parts for parts in reading)
    order = [part for parts in reading for part in parts if part != "1:step"]
    assert order.index("3:chunk") > order.index("2:step") - 2  # one step may read of both
    for engine_rows in rig.engines["target"].rows:
        assert engine_rows <= ROWS


@pytest.mark.parametrize("asked", ["cancel", "stop"])
def test_a_request_ends_between_two_chunks_and_frees_its_place(asked: str) -> None:
    rig = Rig(1)
    long = rig.submit(1, length=100 * ROWS, tokens=1, request_id="long")
    next_one = rig.submit(2, length=1, tokens=1)
    rig.scheduler.start()
    rig.gate.run_to(3)  # the third chunk is being read
    long.cancel = asked == "cancel"
    if asked == "stop":
        assert rig.scheduler.stop("long")
    rig.gate.run_freely()
    assert long.ended.wait(10) and next_one.ended.wait(10)
    assert rig.log == [["1:chunk"]] * 3 + [["2:step"]]
    assert next_one.outcome == "finished"
    rig.scheduler.close()
    assert rig.engines["target"].live == []


def test_who_waits_until_its_prompt_is_read_may_leave(rig: Rig) -> None:
    first, second = (rig.submit(n, length=100 * ROWS, tokens=1) for n in (1, 2))
    rig.scheduler.start()
    rig.gate.run_to(1)
    second.cancel = True
    rig.gate.run_to(2)
    rig.gate.run_freely()
    assert second.ended.wait(10) and second.outcome == "cancelled"
    assert first.ended.wait(10) and first.outcome == "finished"
    assert not any("2:chunk" in parts for parts in rig.log)


def test_the_draft_model_reads_the_prompt_in_chunks_too() -> None:
    rig = Rig(2, DraftModel("draft_model", DraftOptions("unused"), 2, draft_length="fixed"))
    stream = rig.submit(1, length=1, tokens=1000)
    long = rig.submit(2, length=4 * ROWS, tokens=3)
    rig.scheduler.start()
    rig.gate.run_freely()
    assert long.ended.wait(10) and long.outcome == "finished"
    stream.cancel = True
    assert stream.ended.wait(10)
    for name in ("2:chunk", "2:draft chunk"):
        assert sum(name in parts for parts in rig.log) >= 3
    # Between any two chunks of one engine the stream takes a step of the target.
    marks = [
        "c" if "2:draft chunk" in parts else "s"
        for parts in rig.log
        if "2:draft chunk" in parts or "1:step" in parts
    ]
    assert "cc" not in "".join(marks)
    for engine in rig.engines.values():
        assert max(engine.rows) <= ROWS
    rig.scheduler.close()


def test_a_request_without_speculation_leaves_the_draft_alone() -> None:
    rig = Rig(1, DraftModel("draft_model", DraftOptions("unused"), 2))
    rig.gate.run_freely()
    steps = list(rig.deployment.decode([1] * 3 * ROWS, GREEDY, Limits(2), num_draft_tokens=0))
    assert len(steps) == 2
    assert not any("draft" in part for parts in rig.log for part in parts)


def test_chunks_are_not_counted_as_steps(rig: Rig) -> None:
    rig.scheduler.start()
    rig.gate.run_freely()
    listener = rig.submit(1, length=5 * ROWS, tokens=4)
    assert listener.ended.wait(10) and listener.counters is not None
    assert (listener.counters.steps, listener.counters.output_tokens) == (4, 4)


def test_what_others_read_or_emit_changes_no_answer() -> None:
    options = DraftModel("draft_model", DraftOptions("unused"), 2)
    rng = np.random.default_rng(1)
    prompts = [tuple(rng.integers(0, VOCAB, length).tolist()) for length in (1, 7, 45, 30, 3, 11)]
    rig = Rig(4, options)
    rig.gate.run_freely()
    listeners = [Listener() for _ in prompts]
    for prompt, listener in zip(prompts, listeners, strict=True):
        rig.scheduler.submit(Request("", prompt, GREEDY, Limits(15)), listener)
    rig.scheduler.start()
    assert all(listener.ended.wait(10) for listener in listeners)
    rig.scheduler.close()
    for prompt, listener in zip(prompts, listeners, strict=True):
        tokens = list(prompt)
        while len(tokens) < len(prompt) + 15:
            tokens.append(int(np.argmax(TARGET(tokens))))
        assert listener.tokens == tokens[len(prompt) :]
    assert all(engine.live == [] for engine in rig.engines.values())
