"""Waiting for a condition, which is the only way in which a test lets time pass."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PAUSE_SECONDS = 0.005  # between two evaluations of a condition


def until(
    condition: Callable[[], T],
    timeout_s: float = 30,
    failure: Callable[[], str] = lambda: "the condition does not hold",
) -> T:
    """Evaluate `condition` again and again, and return its first true value.

    Raises AssertionError with the text of `failure` if there is none within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"after {timeout_s:g} s: {failure()}"
        time.sleep(PAUSE_SECONDS)
    return found
