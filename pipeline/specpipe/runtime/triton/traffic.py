"""Prometheus: number and duration of the requests of a text model.

Triton's own counters do not measure a model that streams: they stop when `execute` returns.
Autoscalers need the number of requests in flight; dashboards need the durations.
"""

import contextlib
import threading
import time
from collections.abc import Iterator

import triton_python_backend_utils as pb_utils

from specpipe.runtime.guards import harmless

IN_FLIGHT = "specpipe_requests_in_flight"


class Traffic:
    """Counts the requests of one model; usable from several threads.

    Several processes of one model may count: Triton adds up what they change a metric by.
    """

    def __init__(self, model: str) -> None:
        kinds = pb_utils.MetricFamily
        described = (
            (IN_FLIGHT, "Requests that are being answered", kinds.GAUGE),
            ("specpipe_requests_total", "Requests answered, failed or abandoned", kinds.COUNTER),
            ("specpipe_request_seconds_total", "Seconds that they took in all", kinds.COUNTER),
        )
        self._families = [kinds(name=n, description=d, kind=k) for n, d, k in described]
        metrics = [family.Metric(labels={"model": model}) for family in self._families]
        self._in_flight, self._requests, self._seconds = metrics
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count one request for the length of the block."""
        began = time.perf_counter()
        harmless(self._begin)
        try:
            yield
        finally:
            harmless(self._end, time.perf_counter() - began)

    def _begin(self) -> None:
        with self._lock:
            self._in_flight.increment(1)

    def _end(self, seconds: float) -> None:
        with self._lock:
            self._in_flight.increment(-1)
            self._requests.increment(1)
            self._seconds.increment(seconds)
