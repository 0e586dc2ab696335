"""Long prompts: read in chunks, between which others take their steps and anybody may leave."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from specpipe.assembly import Slot
from specpipe.contracts import Draft, Role, Sampling, Scores
from specpipe.methods import DraftModel, DraftOptions, NoSpeculation, Speculation
from specpipe.repository.models.exchange import Counters, Request
from specpipe.repository.models.scheduler import STEPS_PER_TURN, Scheduler
from specpipe.speculate.decode import Limits, Step
from tests.unit.speculate.scripted import ScriptedRunner, random_law

VOCAB, CHUNK = 8, 10
LAW = random_law(VOCAB, seed=1)
GREEDY = Sampling()


@dataclass
class Engine:
    """Notes every call of its runners in one log; a test lets it go on call by call."""

    log: list[str] = field(default_factory=list)
    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    called: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def call(self, what: str) -> None:
        self.log.append(what)
        self.called.release()
        assert self.permits.acquire(timeout=10)

    def runner(self, name: str = "") -> "Runner":
        made = Runner(LAW, VOCAB)
        made.engine, made.name, made.chunk = self, name, CHUNK
        return made

    def run_to(self, calls: int) -> None:
        """Let the engine go on until it stands in its call number `calls`, from 1."""
        while len(self.log) < calls:
            if self.log:
                self.permits.release()
            assert self.called.acquire(timeout=10)

    def run_freely(self) -> None:
        self.permits.release(100_000)


class Runner(ScriptedRunner):
    """Writes `3:chunk` or `3:step` for the sequence that begins with token 3."""

    engine: Engine
    name: str

    def prefill(self) -> bool:
        ran = super().prefill()
        if ran:
            self.engine.call(f"{self.sequence[0]}:{self.name}chunk")
        return ran

    def score(self, draft: Draft) -> Scores:
        self.engine.call(f"{self.sequence[0]}:{self.name}step")
        return super().score(draft)


class Listener:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.counters: Counters | None = None
        self.cancel = False
        self.outcome = ""
        self.ended = threading.Event()

    def is_cancelled(self) -> bool:
        return self.cancel

    def on_step(self, step: Step, counters: Counters) -> None:
        self.tokens += step.tokens
        self.counters = counters
        if step.finish:
            self.end("finished")

    def on_stopped(self, counters: Counters) -> None:
        self.end("stopped")

    def on_cancelled(self) -> None:
        self.end("cancelled")

    def on_error(self, error: Exception) -> None:
        self.end(repr(error))

    def end(self, outcome: str) -> None:
        self.outcome = outcome
        self.ended.set()


class Rig:
    def __init__(self, slots: Sequence[Slot], engine: Engine) -> None:
        self.engine = engine
        self.scheduler = Scheduler(slots, max_queue_size=10)

    def submit(self, first: int, length: int, tokens: int, request_id: str = "") -> Listener:
        listener = Listener()
        prompt = (first, *[0] * (length - 1))
        request = Request(request_id, prompt, GREEDY, Limits(tokens))
        self.scheduler.submit(request, listener)
        return listener


def slots(engine: Engine, count: int, options: Speculation | None = None) -> list[Slot]:
    return [
        Slot({"target": engine.runner(), "draft": engine.runner("draft ")}, options)
        if options is not None
        else Slot({"target": engine.runner()}, NoSpeculation())
        for _ in range(count)
    ]


@pytest.fixture
def rig() -> Iterator[Rig]:
    engine = Engine()
    made = Rig(slots(engine, 3), engine)
    yield made
    engine.run_freely()
    made.scheduler.close()


def longest_run(log: Sequence[str], what: str) -> int:
    longest = run = 0
    for entry in log:
        run = run + 1 if entry == what else 0
        longest = max(longest, run)
    return longest


def test_a_stream_steps_between_any_two_chunks_of_a_long_prompt(rig: Rig) -> None:
    stream = rig.submit(1, length=1, tokens=1000)
    long = rig.submit(2, length=10 * CHUNK, tokens=1)
    rig.scheduler.start()
    rig.engine.run_freely()
    assert long.ended.wait(10) and long.outcome == "finished"
    stream.cancel = True
    assert stream.ended.wait(10)
    log = rig.engine.log
    assert log.count("2:chunk") == 9 and log.count("2:step") == 1
    first, last = log.index("2:chunk"), log.index("2:step")
    assert longest_run(log[first:last], "2:chunk") == 1
    assert log[first:last].count("1:step") >= 9 * STEPS_PER_TURN


def test_a_stream_waits_for_one_chunk_a_round_however_many_prompts_are_read(rig: Rig) -> None:
    stream = rig.submit(1, length=1, tokens=1000)
    readers = [rig.submit(n, length=5 * CHUNK, tokens=1) for n in (2, 3)]
    rig.scheduler.start()
    rig.engine.run_freely()
    assert all(reader.ended.wait(10) for reader in readers)
    stream.cancel = True
    assert stream.ended.wait(10)
    others = [entry for entry in rig.engine.log if entry != "1:step"]
    assert others[:8] == ["2:chunk", "3:chunk"] * 4  # they take turns
    whole = "".join("s" if entry == "1:step" else "." for entry in rig.engine.log)
    first = whole.index("s")  # before it has emitted anything it reads its own prompt
    assert ".." not in whole[first : whole.rindex(".")]


@pytest.mark.parametrize("asked", ["cancel", "stop"])
def test_a_request_ends_between_two_chunks_and_frees_its_slot(asked: str) -> None:
    engine = Engine()
    rig = Rig(slots(engine, 1), engine)
    long = rig.submit(1, length=100 * CHUNK, tokens=1, request_id="long")
    next_one = rig.submit(2, length=1, tokens=1)
    rig.scheduler.start()
    engine.run_to(3)  # the third chunk is being read
    long.cancel = asked == "cancel"
    if asked == "stop":
        assert rig.scheduler.stop("long")
    engine.run_freely()
    assert long.ended.wait(10) and next_one.ended.wait(10)
    assert engine.log == ["1:chunk"] * 3 + ["2:step"]
    assert next_one.outcome == "finished"
    rig.scheduler.close()


def test_who_waits_for_its_turn_to_read_may_leave(rig: Rig) -> None:
    first, second = (rig.submit(n, length=100 * CHUNK, tokens=1) for n in (1, 2))
    rig.scheduler.start()
    rig.engine.run_to(1)
    second.cancel = True
    rig.engine.run_to(2)
    rig.engine.run_freely()
    assert second.ended.wait(10) and second.outcome == "cancelled"
    assert first.ended.wait(10) and first.outcome == "finished"
    assert "2:chunk" not in rig.engine.log


def test_the_draft_model_reads_the_prompt_in_chunks_too() -> None:
    engine = Engine()
    options = DraftModel("draft_model", DraftOptions("unused"), 2)
    rig = Rig(slots(engine, 2, options), engine)
    stream = rig.submit(1, length=1, tokens=1000)
    long = rig.submit(2, length=4 * CHUNK, tokens=3)
    rig.scheduler.start()
    engine.run_freely()
    assert long.ended.wait(10) and long.outcome == "finished"
    stream.cancel = True
    assert stream.ended.wait(10)
    chunks = [entry for entry in engine.log if "chunk" in entry]
    assert chunks == ["2:chunk"] * 3 + ["2:draft chunk"] * 3
    first, last = engine.log.index("2:chunk"), engine.log.index("2:draft step")
    between = ["chunk" if "chunk" in entry else "step" for entry in engine.log[first:last]]
    assert longest_run(between, "chunk") == 1
    rig.scheduler.close()


def test_a_request_without_speculation_leaves_the_draft_alone() -> None:
    engine = Engine()
    engine.run_freely()
    runners: Mapping[Role, Runner] = {"target": engine.runner(), "draft": engine.runner("draft ")}
    runners["draft"].start([7] * 5 * CHUNK)  # of a request that was given up
    slot = Slot(runners, DraftModel("draft_model", DraftOptions("unused"), 2))
    steps = list(slot.decode([1] * 3 * CHUNK, GREEDY, Limits(2), num_draft_tokens=0))
    assert len(steps) == 2
    assert not any("draft" in entry for entry in engine.log)


def test_chunks_are_not_counted_as_steps(rig: Rig) -> None:
    rig.scheduler.start()
    rig.engine.run_freely()
    listener = rig.submit(1, length=5 * CHUNK, tokens=4)
    assert listener.ended.wait(10) and listener.counters is not None
    assert (listener.counters.steps, listener.counters.output_tokens) == (4, 4)
