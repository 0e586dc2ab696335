"""The figures of a load: throughput, percentiles of latencies, goodput, break-even concurrency."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specpipe.config.validation import Slo
from specpipe.core.statistics import percentile
from specpipe.validate.answers import Answer, good
from specpipe.validate.trials import Arm

SHARES = (0.5, 0.95, 0.99)
Percentiles = tuple[float, ...]  # P50, P95, P99


@dataclass(frozen=True)
class LoadPoint:
    """One load through one arm."""

    load: str
    arm: Arm
    clients: int | None  # None: an open loop
    requests: int
    failed: int
    tokens_per_s: float  # output tokens of all requests by the duration of the load
    requests_per_s: float
    goodput: float  # requests per second that are within the SLO
    ttft_ms: Percentiles
    tpot_ms: Percentiles
    gap_ms: Percentiles  # between two responses of a stream


def load_points(
    answers: Sequence[Answer], seconds: Mapping[tuple[str, Arm], float], slo: Slo
) -> list[LoadPoint]:
    """Return a point for every load and arm, in the order of `seconds`."""
    return [
        _point([a for a in answers if (a.load, a.arm) == (load, arm)], load, arm, took, slo)
        for (load, arm), took in seconds.items()
        if any((a.load, a.arm) == (load, arm) for a in answers)
    ]


def _point(answers: Sequence[Answer], load: str, arm: Arm, took: float, slo: Slo) -> LoadPoint:
    served = list(good(answers))
    words = load.split()
    return LoadPoint(
        load=load,
        arm=arm,
        clients=int(words[0]) if words[1].startswith("client") else None,
        requests=len(answers),
        failed=len(answers) - len(served),
        tokens_per_s=sum(a.output_tokens for a in served) / took,
        requests_per_s=len(served) / took,
        goodput=sum(is_good(a, slo) for a in served) / took,
        ttft_ms=_percentiles([a.first_s for a in served]),
        tpot_ms=_percentiles([s for a in served if (s := a.tpot_s) is not None]),
        gap_ms=_percentiles([gap for a in served for gap in a.gaps_s]),
    )


def is_good(answer: Answer, slo: Slo) -> bool:
    """Tell whether an answer is within the SLO."""
    tpot_s = answer.tpot_s or 0.0
    return answer.first_s * 1e3 <= slo.ttft_ms and tpot_s * 1e3 <= slo.tpot_ms


def _percentiles(seconds: Sequence[float]) -> Percentiles:
    return tuple(percentile(seconds, share) * 1e3 for share in SHARES) if seconds else ()


def break_even(points: Sequence[LoadPoint]) -> str:
    """Describe from which number of clients speculation has no more tokens per second."""
    rates = {(p.clients, p.arm): p.tokens_per_s for p in points if p.clients}
    both = sorted({c for c, _ in rates if c and {(c, "plain"), (c, "speculative")} <= set(rates)})
    if not both:
        return "break-even is not known without both arms under a closed loop"
    gains = {c: rates[c, "speculative"] / rates[c, "plain"] for c in both}
    each = ", ".join(f"{gain:.2f}x with {clients}" for clients, gain in gains.items())
    return f"{_verdict(gains)} (tokens per second, of plain decoding's: {each})"


def _verdict(gains: Mapping[int, float]) -> str:
    """Describe the gains by number of clients, in its order."""
    won = [clients for clients, gain in gains.items() if gain >= 1]
    lost = [clients for clients, gain in gains.items() if gain < 1]
    if not lost:
        return f"speculation is faster with up to {won[-1]} clients, the most that were measured"
    if not won:
        return "speculation is slower with every number of clients that was measured"
    if won[-1] > lost[0]:
        return "speculation is sometimes faster and sometimes slower, without one break-even"
    at = _crossing(won[-1], gains[won[-1]], lost[0], gains[lost[0]])
    return f"speculation is faster below {at:.1f} clients (interpolated)"


def _crossing(left: float, gain: float, right: float, loss: float) -> float:
    return left + (right - left) * (gain - 1) / (gain - loss)
