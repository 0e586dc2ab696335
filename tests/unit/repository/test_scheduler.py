"""Many requests, one engine: order, turns, bounds, cancellation, and isolated errors."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest

from specpipe.contracts import Sampling
from specpipe.repository.models.exchange import Counters, Heartbeat, Request
from specpipe.repository.models.failures import EngineError, QueueFull
from specpipe.repository.models.scheduler import STEPS_PER_TURN, Scheduler
from specpipe.speculate.decode import Limits, Step


class Slot:
    """Emits its own name's tokens; a gate lets a test decide when it goes on."""

    def __init__(self, log: list[str], gate: threading.Event) -> None:
        self.log, self.gate = log, gate
        self.running: list[int] = []

    def events(
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


class Failing(Listener):
    """A listener of which some calls raise."""

    def __init__(self, *broken: str) -> None:
        super().__init__()
        self.calls: list[str] = []
        for name in broken:
            setattr(self, name, partial(self.fail, name))

    def fail(self, name: str, *arguments: object) -> None:
        self.calls.append(name)
        raise RuntimeError(f"{name} is broken")


@pytest.mark.parametrize(
    "broken",
    [("on_step", "on_error"), ("is_cancelled",), ("is_cancelled", "on_cancelled", "on_error")],
)
def test_a_listener_that_raises_everywhere_ends_its_own_request_alone(
    rig: Rig, broken: tuple[str, ...]
) -> None:
    failing, good = Failing(*broken), Listener()
    for listener in (failing, good):
        rig.scheduler.submit(Request("", (1,), Sampling(), Limits(3)), listener)
    rig.gate.set()
    assert good.ended.wait(5) and good.outcome == "finished"
    assert failing.calls and set(failing.calls) <= set(broken)


def test_a_request_that_fails_and_cannot_be_told_so_ends_alone(rig: Rig) -> None:
    failing, good = Failing("on_error"), Listener()
    for name, listener in ((666, failing), (1, good)):
        rig.scheduler.submit(Request("", (name,), Sampling(), Limits(3)), listener)
    rig.gate.set()
    assert good.ended.wait(5) and good.outcome == "finished"
    assert failing.calls == ["on_error"]


@pytest.mark.parametrize("asked", ["stop", "cancel"])
def test_a_listener_that_fails_at_its_end_keeps_no_slot(rig: Rig, asked: str) -> None:
    failing = Failing("on_stopped", "on_cancelled")
    rig.scheduler.submit(Request("a", (1,), Sampling(), Limits(10_000)), failing)
    rig.wait_active(1)
    failing.cancel = asked == "cancel"
    if asked == "stop":
        assert rig.scheduler.stop("a")
    good = rig.submit(2)
    rig.gate.set()
    assert good.ended.wait(5) and good.outcome == "finished"
    assert failing.calls == [{"stop": "on_stopped", "cancel": "on_cancelled"}[asked]]


@pytest.mark.parametrize("broken", ["is_cancelled", "on_cancelled"])
def test_a_listener_in_the_queue_that_raises_does_not_end_the_sweep(rig: Rig, broken: str) -> None:
    first = rig.submit(1, tokens=10_000)
    rig.wait_active(1)
    failing, good = Failing(broken), Listener()
    failing.cancel = True
    for listener in (failing, good):
        rig.scheduler.submit(Request("2", (2,), Sampling(), Limits(3)), listener)
    good.cancel = True
    rig.gate.set()
    assert good.ended.wait(5) and good.outcome == "cancelled" and failing.calls == [broken]
    first.cancel = True
    assert first.ended.wait(5)


def test_a_listener_that_raises_as_the_server_closes_holds_nobody_up(rig: Rig) -> None:
    failing = Failing("on_cancelled")
    rig.scheduler.submit(Request("", (1,), Sampling(), Limits(10_000)), failing)
    rig.wait_active(1)
    waiting = rig.submit(2)
    rig.gate.set()
    rig.scheduler.close()
    assert failing.calls == ["on_cancelled"] and waiting.outcome == "cancelled"


def test_metrics_that_fail_cost_no_answer(rig: Rig) -> None:
    def broken(step: Step) -> None:
        raise RuntimeError("no metrics")

    rig.scheduler.observe = broken
    rig.gate.set()
    listener = rig.submit(1)
    assert listener.ended.wait(5) and listener.outcome == "finished"


def test_what_was_counted_is_handed_on_once_nothing_is_left(rig: Rig) -> None:
    """A request that is given up has no last step that could do it."""
    rested = threading.Event()
    rig.scheduler.rest = rested.set
    given_up = rig.submit(1, 10_000)
    rig.wait_active(1)
    assert not rested.is_set()
    given_up.cancel = True
    rig.gate.set()
    assert given_up.ended.wait(5) and rested.wait(5)


def test_the_process_ends_if_the_thread_that_owns_the_engine_does() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", DYING], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1, ended.stderr
    assert "SystemExit: the engine is gone" in ended.stderr
    assert "the thread 'scheduler' failed; the process ends" in ended.stderr


DYING = """
import time
from specpipe.contracts import Sampling
from specpipe.repository.models.exchange import Request
from specpipe.repository.models.scheduler import Scheduler
from specpipe.speculate.decode import Limits

class Slot:
    def decode(self, *arguments, **options):
        raise SystemExit("the engine is gone")
    events = decode

class Listener:
    def is_cancelled(self):
        return False

scheduler = Scheduler([Slot()], 1)
scheduler.start()
scheduler.submit(Request("", (1,), Sampling(), Limits(1)), Listener())
time.sleep(30)
raise SystemExit("nobody noticed")
"""


def test_the_thread_tells_that_it_moves_idle_or_busy(rig: Rig) -> None:
    beats: list[Heartbeat] = []
    beat = threading.Event()

    def answer(heartbeat: Heartbeat) -> None:
        assert threading.current_thread().name == "scheduler"
        beats.append(heartbeat)
        beat.set()

    rig.scheduler.probe(answer)
    assert beat.wait(5) and beats[-1] == Heartbeat(rounds=0, active=0, waiting=0)
    beat.clear()
    rig.submit(1, tokens=10_000).cancel = False
    rig.wait_active(1)
    waiting = rig.submit(2)
    rig.scheduler.probe(answer)
    assert not beats[1:]  # the engine stands still: nobody answers
    rig.gate.set()
    assert beat.wait(5) and beats[-1].active == 1 and beats[-1].rounds > 0
    waiting.cancel = True


def test_nobody_waits_for_a_server_that_has_ended(rig: Rig) -> None:
    rig.scheduler.close()
    with pytest.raises(EngineError, match="ending") as caught:
        rig.submit(1)
    assert caught.value.code == "UNAVAILABLE"


def test_closing_ends_everything(rig: Rig) -> None:
    listeners = [rig.submit(1, tokens=10_000), rig.submit(2)]
    rig.wait_active(1)
    rig.gate.set()
    rig.scheduler.close()
    assert [listener.outcome for listener in listeners] == ["cancelled", "cancelled"]
