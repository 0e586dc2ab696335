"""Closed and open loops of clients: rates, latencies, goodput, and the equality of every answer."""

from collections.abc import Iterator, Sequence

from specpipe.serve.client import Options
from specpipe.validate.answers import Answer, PromptItem
from specpipe.validate.checks import Check
from specpipe.validate.differences import HEAD, compare
from specpipe.validate.load import ClosedLoop, OpenLoop, Traffic
from specpipe.validate.load_figures import LoadPoint, break_even, load_points
from specpipe.validate.metrics import Figure
from specpipe.validate.pairs import pair
from specpipe.validate.scenarios import Grading, Measured, Result, Scenario, Setup, Sheet
from specpipe.validate.scenarios.answers import CLASSES, note
from specpipe.validate.trials import Arm


def dataset(setup: Setup) -> Sequence[PromptItem]:
    """Return the prompts in turn, at least two for each client."""
    options, asked = setup.config.validate.concurrency, setup.questions.asked
    count = max(options.requests, 2 * max(options.clients, default=1))
    return [PromptItem(asked[i % len(asked)]) for i in range(count)]


def loads(setup: Setup) -> Sequence[Traffic]:
    """Return the closed loops, then the open ones."""
    options = setup.config.validate.concurrency
    return [
        *(ClosedLoop(clients) for clients in options.clients),
        *(OpenLoop(rate) for rate in options.rates),
    ]


def sampling(setup: Setup) -> Sequence[Options]:
    """Return greedy options."""
    return (Options(max_tokens=setup.config.validate.concurrency.max_tokens),)


def grade(measured: Measured, grading: Grading) -> Result:
    """Return the figures of every load and arm, and classify the answers that differ."""
    setup = grading.setup
    points = load_points(measured.answers, measured.seconds, setup.config.validate.slo)
    equal = compare(pair(measured.answers), grading.judge, setup.questions.tokenizer, grading.noise)
    crossing = break_even(points)
    sheets = [_sheet(points, crossing), Sheet(CLASSES, note(grading), HEAD, equal.rows())]
    return Result(
        "concurrency", figures={"goodput": dict(_goodput(points))}, sheets=sheets, equality=equal,
        checks=(_errors(measured.answers),), points=points,
        break_even=crossing,
    )  # fmt: skip


def _goodput(points: Sequence[LoadPoint]) -> Iterator[tuple[Arm, Figure]]:
    """Yield the most good requests per second of each arm, under any load."""
    for arm in dict.fromkeys(point.arm for point in points):
        best = max(point.goodput for point in points if point.arm == arm)
        yield arm, Figure(best, best, best, sum(point.arm == arm for point in points))


def _errors(answers: Sequence[Answer]) -> Check:
    """Check the closed loops; an open loop may ask for more than a server takes."""
    closed = [answer for answer in answers if "client" in answer.load]
    failed = [answer for answer in closed if answer.error is not None]
    seen = f"{len(failed)} of {len(closed)} failed"
    if failed:
        seen += f", the first with {failed[0].load}: {failed[0].error}"
    return Check("every request of a closed loop has an answer", not failed, seen)


def _sheet(points: Sequence[LoadPoint], crossing: str) -> Sheet:
    head = ("load", "arm", "failed", "tokens/s", "goodput, requests/s", "TTFT ms, P50 / P95 / P99",
            "TPOT ms, P50 / P95 / P99", "between responses ms, P50 / P95 / P99")  # fmt: skip
    rows = [
        [p.load, p.arm, f"{p.failed} of {p.requests}", f"{p.tokens_per_s:.1f}", f"{p.goodput:.2f}",
         *(" / ".join(f"{v:.0f}" for v in three) for three in (p.ttft_ms, p.tpot_ms, p.gap_ms))]
        for p in points
    ]  # fmt: skip
    return Sheet("Concurrency", f"{crossing[:1].upper()}{crossing[1:]}.", head, rows)


SCENARIO = Scenario(
    "concurrency",
    "The prompts under closed and open loops of clients, with and without speculation.",
    grade,
    dataset=dataset,
    loads=loads,
    sampling=sampling,
)
