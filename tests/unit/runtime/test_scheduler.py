"""Many requests, one engine: order, shared rounds, bounds, cancellation, isolated errors."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import pytest

from specpipe.core.contracts import Sampling
from specpipe.core.errors import ConfigError
from specpipe.runtime.exchange import Heartbeat, Request
from specpipe.runtime.failures import EngineError, QueueFull
from specpipe.runtime.scheduler import Scheduler
from specpipe.speculate.decode import Finish, Limits, Step
from tests.helpers.listener import Listener
from tests.helpers.waiting import until


@dataclass(eq=False)
class Stream:
    """A request that was added to the decoder, and how many tokens it emitted."""

    request: Request
    emitted: int = 0

    @property
    def name(self) -> int:
        return self.request.prompt[0]


@dataclass
class FakeDecoder:
    """Emits one token per stream and round; a gate lets a test decide when it goes on.

    Request 666 fails in a round, and 667 is not accepted at all.
    """

    log: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    streams: list[Stream] = field(default_factory=list)
    rounds: list[list[int]] = field(default_factory=list)  # the names of the streams of each
    broken_rounds: int = 0  # so many fail as a whole
    begun: int = 0  # the streams of the round that is in progress, or was the last

    def add(self, request: Request) -> Stream:
        if request.prompt[0] == 667:
            raise ConfigError("num_draft_tokens is 9")
        self.streams.append(Stream(request))
        return self.streams[-1]

    def remove(self, stream: Stream) -> None:
        if stream in self.streams:
            self.streams.remove(stream)

    def round(self) -> list[tuple[Stream, Step | Exception]]:
        self.begun = len(self.streams)
        self.gate.wait(5)
        self.rounds.append([stream.name for stream in self.streams])
        if self.broken_rounds:
            self.broken_rounds -= 1
            raise RuntimeError("the round is broken")
        return [(stream, self.event(stream)) for stream in list(self.streams)]

    def event(self, stream: Stream) -> Step | Exception:
        if stream.name == 666:
            self.remove(stream)
            return RuntimeError("broken")
        self.log.append(str(stream.name))
        stream.emitted += 1
        last = stream.emitted == stream.request.limits.max_tokens
        finish: Finish | None = "length" if last else None
        return Step((stream.emitted - 1,), drafted=2, accepted=1, finish=finish)


class Rig:
    def __init__(self, batch: int = 1, queue: int = 2, *, started: bool = True) -> None:
        self.decoder = FakeDecoder()
        self.log, self.gate = self.decoder.log, self.decoder.gate
        self.scheduler = Scheduler(self.decoder, batch, queue)  # type: ignore[arg-type]
        if started:
            self.scheduler.start()

    def submit(self, name: int, tokens: int = 3) -> Listener:
        listener = Listener()
        self.scheduler.submit(Request(str(name), (name,), Sampling(), Limits(tokens)), listener)
        return listener

    def wait_active(self, count: int) -> None:
        """Wait until a round with so many streams has begun; it ends when the gate is open."""
        until(lambda: self.decoder.begun == count)


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


def test_streams_share_every_round() -> None:
    rig = Rig(batch=2, started=False)
    rig.gate.set()
    long, short = rig.submit(1, tokens=100), rig.submit(2, tokens=5)
    rig.scheduler.start()
    assert short.ended.wait(5) and long.ended.wait(5)
    rig.scheduler.close()
    assert rig.decoder.rounds == [[1, 2]] * 5 + [[1]] * 95


def test_a_request_joins_the_round_after_its_arrival() -> None:
    rig = Rig(batch=2)
    long = rig.submit(1, tokens=100)
    rig.wait_active(1)
    short = rig.submit(2, tokens=5)
    rig.gate.set()
    assert short.ended.wait(5) and long.ended.wait(5)
    rig.scheduler.close()
    assert rig.decoder.rounds == [[1]] + [[1, 2]] * 5 + [[1]] * 94


def test_no_round_has_more_streams_than_the_batch() -> None:
    rig = Rig(batch=2, queue=5, started=False)
    rig.gate.set()
    listeners = [rig.submit(n, tokens=10 * n) for n in (1, 2, 3, 4)]
    rig.scheduler.start()
    assert all(listener.ended.wait(5) for listener in listeners)
    rig.scheduler.close()
    assert {len(names) for names in rig.decoder.rounds} == {1, 2}
    assert [step.tokens for step in listeners[3].steps] == [(n,) for n in range(40)]
    order = list(dict.fromkeys(name for names in rig.decoder.rounds for name in names))
    assert order == [1, 2, 3, 4]
    third = next(names for names in rig.decoder.rounds if 3 in names)
    assert third == [2, 3]  # it joins as soon as a place is free, while the other goes on


def test_a_finished_stream_is_removed_from_the_decoder(rig: Rig) -> None:
    rig.gate.set()
    assert rig.submit(1).ended.wait(5) and rig.submit(2).ended.wait(5)
    rig.scheduler.close()
    assert rig.decoder.streams == []
    assert not rig.scheduler.stop("1") and not rig.scheduler.stop("2")


def test_a_full_queue_refuses_at_once(rig: Rig) -> None:
    rig.submit(1)
    rig.wait_active(1)
    rig.submit(2)
    rig.submit(3)
    with pytest.raises(QueueFull, match="busy: 2 requests are waiting"):
        rig.submit(4)


def test_a_burst_is_bounded_before_the_engine_takes_its_first_request() -> None:
    scheduler = Scheduler(FakeDecoder(), 1, 2)  # type: ignore[arg-type]  # not started yet
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


def test_a_request_that_the_decoder_does_not_take_fails_alone() -> None:
    rig = Rig(batch=2)
    good, refused = rig.submit(1), rig.submit(667)
    rig.gate.set()
    assert refused.ended.wait(5) and good.ended.wait(5)
    assert refused.outcome == "error: num_draft_tokens is 9" and good.outcome == "finished"
    rig.scheduler.close()


def test_a_round_that_fails_ends_its_streams_and_not_the_thread() -> None:
    rig = Rig(batch=2, queue=5, started=False)
    rig.decoder.broken_rounds = 1
    rig.gate.set()
    broken = [rig.submit(n, tokens=10_000) for n in (1, 2)]
    rig.scheduler.start()
    assert all(listener.ended.wait(5) for listener in broken)
    assert {listener.outcome for listener in broken} == {"error: the round is broken"}
    assert rig.submit(3).ended.wait(5)
    rig.scheduler.close()
    assert rig.decoder.streams == []


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
def test_a_listener_that_fails_at_its_end_keeps_no_place(rig: Rig, asked: str) -> None:
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


def test_each_round_ends_with_a_call_after_all_listeners() -> None:
    """Whoever sends the news of a round sends them together, and once more at the end."""
    rig = Rig(batch=2, started=False)
    told: list[tuple[int, int]] = []
    first, second = rig.submit(1), rig.submit(2)
    rig.scheduler.after_round = lambda: told.append((len(first.steps), len(second.steps)))
    rig.gate.set()
    rig.scheduler.start()
    assert first.ended.wait(5) and second.ended.wait(5)
    rig.scheduler.close()
    assert told == [(1, 1), (2, 2), (3, 3), (3, 3)]


def test_a_call_after_a_round_that_fails_costs_no_answer(rig: Rig) -> None:
    def broken() -> None:
        raise RuntimeError("no socket")

    rig.scheduler.after_round = broken
    rig.gate.set()
    listener = rig.submit(1)
    assert listener.ended.wait(5) and listener.outcome == "finished"


def test_the_process_ends_if_the_thread_that_owns_the_engine_does() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", DYING], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1, ended.stderr
    assert "SystemExit: the engine is gone" in ended.stderr
    assert "the thread 'scheduler' failed; the process ends" in ended.stderr


DYING = """
import threading
from specpipe.core.contracts import Sampling
from specpipe.runtime.exchange import Request
from specpipe.runtime.scheduler import Scheduler
from specpipe.speculate.decode import Limits

class Decoder:
    def add(self, request):
        return object()

    def round(self):
        raise SystemExit("the engine is gone")

class Listener:
    def is_cancelled(self):
        return False

scheduler = Scheduler(Decoder(), 1, 1)
scheduler.start()
scheduler.submit(Request("", (1,), Sampling(), Limits(1)), Listener())
threading.Event().wait()  # the process ends in it
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
