"""The choices of `tune` and `recommend` compared with brute force, through the server.

Every setting is served in turn. The same server answers the same prompts with and without
speculation, so a setting has a speed-up over plain decoding that does not depend on how fast the
machine is at that time. The fastest of many noisy measurements is partly chance. So the best few
and the choice are served again, in turn, and only these measurements are compared.

Everything that was measured is in a ledger, a file of JSON lines. A later session continues it.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from specpipe.bench.served import Notify, send
from specpipe.bench.throughput import ANSWERS, Span, varied, while_busy
from specpipe.config.records import parse_record
from specpipe.config.speculation import NoSpeculation, Speculation
from specpipe.serve.client import Client, Options
from specpipe.validate.load import ClosedLoop, run_load

BEST = 3  # settings of brute force that are measured again
WARM_UP_TOKENS = 8

Serve = Callable[[Speculation], AbstractContextManager[Client]]


@dataclass(frozen=True)
class SearchExtent:
    """How much is measured."""

    prompts: int = 3
    max_tokens: int = 32
    passes: int = 2  # of all prompts, with each setting
    rounds: int = 3  # in which the best settings and the choice are served again
    stride: int = 1  # of the grid; 1: all of it


@dataclass(frozen=True)
class RunAtLoad:
    """A run at one load."""

    run: str
    streams: int


@dataclass(frozen=True)
class Timing:
    """One setting in one start of the server: wall-clock milliseconds per output token.

    Counted are those of all clients together, as long as all have something to do.
    """

    ms: float
    plain_ms: float  # of the same server without speculation, in turn

    @property
    def speedup(self) -> float:
        """How much faster the setting is."""
        return self.plain_ms / self.ms


@dataclass(frozen=True)
class Ledger:
    """The measurements of all sessions, one a line."""

    file: Path

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield what was written; a line that was cut off by an interruption is left out."""
        if not self.file.exists():
            return
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue

    def write(self, **values: Any) -> None:
        """Append a line."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, sort_keys=True) + "\n")

    def of(self, kind: str, subject: RunAtLoad) -> list[dict[str, Any]]:
        """Return the lines of one kind about a subject."""
        wanted = (kind, subject.run, subject.streams)
        return [
            v for v in self.lines() if (v.get("kind"), v.get("run"), v.get("streams")) == wanted
        ]

    def timings(self, kind: str, subject: RunAtLoad) -> dict[str, list[Timing]]:
        """Return the measurements of one kind, by the key of their settings."""
        found: dict[str, list[Timing]] = {}
        for line in self.of(kind, subject):
            timing = Timing(line["ms"], line["plain_ms"])
            found.setdefault(line["settings"], []).append(timing)
        return found

    def note(self, kind: str, subject: RunAtLoad, key: str, timing: Timing) -> None:
        """Append a measurement."""
        self.write(kind=kind, settings=key, **asdict(subject), **asdict(timing))


def key_of(options: Speculation) -> str:
    """Return settings as text from which `settings_of` reads them."""
    return json.dumps(asdict(options), sort_keys=True)


def settings_of(key: str) -> Speculation:
    """Return the settings of a key."""
    options: Speculation = parse_record(key, Speculation)
    return options


@dataclass(frozen=True)
class Search:
    """The measurement of one run at some loads; stops where `is_over` tells so, between servers."""

    run: str
    prompts: Sequence[str]
    extent: SearchExtent
    ledger: Ledger
    serve: Serve
    is_over: Callable[[], bool]
    notify: Notify = lambda text: None

    def measure_grid(self, settings: Sequence[Speculation], loads: Sequence[int]) -> bool:
        """Measure every setting once at every load; tell whether all are measured."""
        subjects = [RunAtLoad(self.run, streams) for streams in loads]
        done = {s: self.ledger.timings("grid", s) for s in subjects}
        for number, options in enumerate(settings):
            missing = [s for s in subjects if key_of(options) not in done[s]]
            if missing:
                if self.is_over():
                    return False
                self.notify(f"{self.run}: setting {number + 1} of {len(settings)}")
                self._serve("grid", options, missing)
        return True

    def measure_again(self, kind: str, settings: Sequence[str], subject: RunAtLoad) -> bool:
        """Serve settings in turn until each has its rounds; tell whether all have."""
        done = {key: len(v) for key, v in self.ledger.timings(kind, subject).items()}
        for number in range(self.extent.rounds):
            for key in settings:
                if done.get(key, 0) <= number:
                    if self.is_over():
                        return False
                    self.notify(
                        f"{self.run}: {kind}, round {number + 1}, {subject.streams} streams"
                    )
                    self._serve(kind, settings_of(key), [subject])
        return True

    def _serve(self, kind: str, options: Speculation, subjects: Sequence[RunAtLoad]) -> None:
        with self.serve(options) as client:
            for subject in subjects:
                timing = time_settings(client, self.prompts, subject.streams, self.extent)
                self.ledger.note(kind, subject, key_of(options), timing)


def time_settings(
    client: Client, prompts: Sequence[str], streams: int, extent: SearchExtent
) -> Timing:
    """Send all prompts with and without speculation in turn, in `streams` streams.

    The first arm alternates from pass to pass. Both are warmed up. Several streams have
    ANSWERS answers each, so prompts are sent again if there are fewer.
    """
    fast = Options(max_tokens=extent.max_tokens)
    arms = (fast, replace(fast, num_draft_tokens=0))
    for arm in arms:
        send(client, prompts[0], replace(arm, max_tokens=WARM_UP_TOKENS))
    most = ANSWERS * streams if streams > 1 else 1
    asked = list(islice(cycle(prompts), max(len(prompts), most)))
    lengths = varied(extent.max_tokens, len(asked))
    seconds, tokens = [0.0, 0.0], [0.0, 0.0]
    for number in range(extent.passes):
        for place in (0, 1) if number % 2 else (1, 0):
            jobs = [
                partial(send, client, prompt, replace(arms[place], max_tokens=tokens_of))
                for prompt, tokens_of in zip(asked, lengths, strict=True)
            ]
            answers, _ = run_load(ClosedLoop(streams), jobs)
            found = [sent.result for sent in answers]
            spans = [Span(r.output_tokens or 0, r.first_s, r.total_s) for r in found]
            came, spent_s = while_busy(spans, streams)
            seconds[place] += spent_s
            tokens[place] += came
    ms = [1000 * s / max(1.0, n) for s, n in zip(seconds, tokens, strict=True)]
    return Timing(*ms)


def best_keys(ledger: Ledger, subject: RunAtLoad) -> list[str]:
    """Return the settings that were the fastest when all were measured."""
    found = ledger.timings("grid", subject)
    ordered = sorted(found, key=lambda key: -found[key][-1].speedup)
    return ordered[:BEST]


def strided(settings: Sequence[Speculation], stride: int) -> list[Speculation]:
    """Return every `stride`-th setting, in an order in which early ones cover the whole grid."""
    chosen = list(settings)[::stride]
    steps = (8, 4, 2, 1)
    order = dict.fromkeys(n for step in steps for n in range(0, len(chosen), step))
    return [chosen[n] for n in order]


def deadline(minutes: float, now: Callable[[], float] = time.monotonic) -> Callable[[], bool]:
    """Return what tells whether that many minutes have passed since now."""
    ends = now() + 60 * minutes
    return lambda: now() >= ends


def is_plain(key: str) -> bool:
    """Tell whether settings are plain decoding, whose speed-up is 1."""
    return isinstance(settings_of(key), NoSpeculation)
