"""A listener of one request that keeps what the scheduler tells it."""

import threading

from specpipe.runtime.exchange import Counters
from specpipe.speculate.decode import Step


class Listener:
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.counters: Counters | None = None
        self.ended = threading.Event()
        self.cancel = False
        self.outcome = ""

    @property
    def tokens(self) -> list[int]:
        return [token for step in self.steps for token in step.tokens]

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
