"""The findings of a report in sentences: what a reader needs first."""

from collections import Counter
from collections.abc import Iterator

from specpipe.validate.report import Report


def findings(report: Report) -> list[str]:
    """Return the verdict, equality, speed-up, load and accuracy, as far as they were measured."""
    return [
        *_verdict(report),
        *_equality(report),
        *_speed(report),
        *_load(report),
        *_accuracy(report),
    ]


def _verdict(report: Report) -> Iterator[str]:
    failed = [str(gate) for gate in report.gates if not gate.passed]
    failed += [str(check) for check in report.checks if not check.passed]
    total = len(report.gates) + len(report.checks)
    if failed:
        yield f"{len(failed)} of {total} gates and checks failed, the first: {failed[0]}."
    else:
        yield f"All gates ({len(report.gates)}) and checks ({len(report.checks)}) passed."


def _equality(report: Report) -> Iterator[str]:
    compared: Counter[tuple[str, str]] = Counter()
    for result in report.results:
        compared.update(result.equality.compared)
    for (arm, against), count in compared.items():
        found = [d for d in report.differences() if (d.arm, d.against) == (arm, against)]
        kinds: Counter[str] = Counter(d.kind for d in found)
        parts = [f"{count - len(found)} equal"]
        parts += [f"{kinds[kind]} {word}" for kind, word in WORDS.items() if kinds[kind]]
        yield f"Answers, {arm} against {against}: {', '.join(parts)}, of {count}."


WORDS = {"near-tie": "near-ties", "defect": "DEFECTS", "not judged": "different and not judged"}


def _speed(report: Report) -> Iterator[str]:
    found = report.figures.get("speedup_over_plain", {}).get("speculative")
    if found is not None:
        low, high = found.interval or (found.p10, found.p90)
        yield (
            f"Speculation makes one request at a time {found.median:.2f} times as fast as plain "
            f"decoding (median of {found.samples} prompts, 95 % interval {low:.2f} to {high:.2f})."
        )


def _load(report: Report) -> Iterator[str]:
    for result in report.results:
        if result.break_even is not None:
            yield f"Under load, {result.break_even}."


def _accuracy(report: Report) -> Iterator[str]:
    found = next(iter(report.figures.get("kl_mean", {}).values()), None)
    if found is not None:
        yield (
            f"The engine is {found.median:.2e} nats from the reference "
            f"(mean KL divergence over {found.samples} positions)."
        )
