"""Many requests, one engine: order, turns, bounds, cancellation, and errors that stay alone."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from specpipe.contracts import Sampling
from specpipe.repository.models.exchange import Counters, Request
from specpipe.repository.models.failures import QueueFull
from specpipe.repository.models.scheduler import STEPS_PER_TURN, Scheduler
from specpipe.speculate.decode import Limits, Step


class Slot:
    """Emits its own name's tokens; a gate lets a test decide when it goes on."""

    def __init__(self, log: list[str], gate: threading.Event) -> None:
        self.log, self.gate = log, gate
        self.running: list[int] = []

    def decode(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        limits: Limits,
        num_draft_tokens: int | None = None,
        *,
        log_probs: bool = False,
        running: Callable[[], int],
    ) -> Iterator[Step]:
        for n in range(limits.max_tokens):
            self.gate.wait(5)
            if prompt[0] == 666:
                raise RuntimeError("broken")
            self.log.append(str(prompt[0]))
            self.running.append(running())
            last = n == limits.max_tokens - 1
            yield Step((n,), drafted=2, accepted=1, finish="length" if last else None)


class Listener:
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.counters: Counters | None = None
        self.ended = threading.Event()
        self.cancel = False
        self.outcome = ""

    def is_cancelled(self) -> bool:
        return self.cancel

    def on_step(self, step: Step, counters: Counters) -> None:
        self.steps.append(step)
        self.counters = counters
        if step.finish:
            self.end("finished")

    def on_stopped(self, counters: Counters) -> None:
        self.end("stopped")

    def on_cancelled(self) -> None:
        self.end("cancelled")

    def on_error(self, error: Exception) -> None:
        self.end(f"error: {error}")

    def end(self, outcome: str) -> None:
        self.outcome = outcome
        self.ended.set()


class Rig:
    def __init__(self, slots: int = 1, queue: int = 2) -> None:
        self.log: list[str] = []
        self.gate = threading.Event()
        self.slots = [Slot(self.log, self.gate) for _ in range(slots)]
        self.scheduler = Scheduler(self.slots, queue)  # type: ignore[arg-type]
        self.scheduler.start()

    def submit(self, name: int, tokens: int = 3) -> Listener:
        listener = Listener()
        self.scheduler.submit(Request(str(name), (name,), Sampling(), Limits(tokens)), listener)
        return listener

    def wait_active(self, count: int) -> None:
        deadline = time.monotonic() + 5
        while len(self.scheduler._active) < count and time.monotonic() < deadline:
            time.sleep(0.001)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.gate.set()
    made.scheduler.close()


def test_requests_are_answered_in_order_of_arrival(rig: Rig) -> None:
    rig.gate.set()
    listeners = [rig.submit(n) for n in (1, 2, 3)]
    assert all(listener.ended.wait(5) for listener in listeners)
    assert rig.log == ["1"] * 3 + ["2"] * 3 + ["3"] * 3
    assert [step.tokens for step in listeners[0].steps] == [(0,), (1,), (2,)]


def test_sequences_in_slots_take_turns() -> None:
    rig = Rig(slots=2)
    long, short = rig.submit(1, tokens=100), rig.submit(2, tokens=5)
    rig.wait_active(2)
    rig.gate.set()
    assert short.ended.wait(5) and long.ended.wait(5)
    assert rig.log[: 3 * STEPS_PER_TURN].count("2") >= STEPS_PER_TURN
    assert rig.log.index("2") <= STEPS_PER_TURN
    rig.scheduler.close()


def test_a_sequence_can_ask_how_many_are_running() -> None:
    rig = Rig(slots=2)
    listeners = [rig.submit(n, tokens=50 * n) for n in (1, 2)]
    rig.gate.set()
    assert all(listener.ended.wait(5) for listener in listeners)
    rig.scheduler.close()
    running = [n for slot in rig.slots for n in slot.running]
    assert set(running) == {1, 2}


def test_a_full_queue_refuses_at_once(rig: Rig) -> None:
    rig.submit(1)
    rig.wait_active(1)
    rig.submit(2)
    rig.submit(3)
    with pytest.raises(QueueFull, match="busy: 2 requests are waiting"):
        rig.submit(4)


def test_a_burst_is_bounded_before_the_engine_takes_its_first_request() -> None:
    scheduler = Scheduler([Slot([], threading.Event())], max_queue_size=2)  # not started yet
    request = Request("", (1,), Sampling(), Limits(1))
    for _ in range(3):
        scheduler.submit(request, Listener())
    with pytest.raises(QueueFull, match="busy: 2 requests are waiting"):
        scheduler.submit(request, Listener())


def test_counters_cover_the_whole_request(rig: Rig) -> None:
    rig.gate.set()
    listener = rig.submit(1, tokens=6)
    assert listener.ended.wait(5) and listener.counters is not None
    counters = listener.counters
    assert (counters.steps, counters.output_tokens) == (6, 6)
    assert (counters.draft_tokens, counters.accepted_draft_tokens) == (12, 6)
    assert counters.arrival_ns <= counters.first_scheduled_ns <= counters.first_token_ns
    assert counters.first_token_ns <= counters.last_token_ns


def test_a_cancelled_request_frees_the_engine_at_its_next_step(rig: Rig) -> None:
    first, second = rig.submit(1, tokens=10_000), rig.submit(2)
    rig.wait_active(1)
    first.cancel = True
    rig.gate.set()
    assert first.ended.wait(5) and second.ended.wait(5)
    assert first.outcome == "cancelled" and second.outcome == "finished"
    assert rig.log.count("1") <= 2


def test_a_cancelled_request_leaves_the_queue(rig: Rig) -> None:
    first = rig.submit(1, tokens=10_000)
    rig.wait_active(1)
    waiting = rig.submit(2)
    waiting.cancel = True
    rig.gate.set()
    assert waiting.ended.wait(5) and waiting.outcome == "cancelled"
    assert not first.ended.is_set() and "2" not in rig.log


def test_a_stopped_request_ends_at_its_next_step_wherever_it_is(rig: Rig) -> None:
    first, second = rig.submit(1, tokens=10_000), rig.submit(2)
    rig.wait_active(1)
    assert rig.scheduler.stop("2") and rig.scheduler.stop("1")
    assert not rig.scheduler.stop("unknown")
    rig.gate.set()
    assert first.ended.wait(5) and second.ended.wait(5)
    assert (first.outcome, second.outcome) == ("stopped", "stopped")


def test_one_request_that_breaks_does_not_take_others_along(rig: Rig) -> None:
    broken, good = rig.submit(666), rig.submit(2)
    rig.gate.set()
    assert broken.ended.wait(5) and good.ended.wait(5)
    assert broken.outcome == "error: broken" and good.outcome == "finished"


def test_closing_ends_everything(rig: Rig) -> None:
    listeners = [rig.submit(1, tokens=10_000), rig.submit(2)]
    rig.wait_active(1)
    rig.gate.set()
    rig.scheduler.close()
    assert [listener.outcome for listener in listeners] == ["cancelled", "cancelled"]
