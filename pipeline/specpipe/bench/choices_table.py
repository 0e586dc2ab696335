"""The tables of `bench.choices`, made from a ledger."""

from collections.abc import Callable, Mapping, Sequence

from specpipe.bench.choices import Ledger, RunAtLoad, Timing, is_plain, settings_of
from specpipe.config.speculation import Speculation
from specpipe.validate.metrics import Figure, figure

Shown = Callable[[Speculation], str]
WITHIN = 0.95  # of the fastest: what a choice must reach

_TUNE = (
    "| run | streams | settings | tune's choice | predicted | speed-up | fastest of brute force "
    "| speed-up | choice / fastest |"
)
_METHODS = "| run | streams | method | predicted | speed-up | recommended |"


def choices_table(ledger: Ledger, subjects: Sequence[RunAtLoad], shown: Shown) -> str:
    """Return a line for each run and load: the choice of `tune`, and that of brute force.

    Speed-ups are medians of the rounds with the 10th and 90th percentile.
    """
    lines = [_TUNE, "|" + "---|" * _TUNE.strip("| ").count("|") + "---|"]
    for subject in subjects:
        choice = next(iter(ledger.of("choice", subject)), None)
        if choice is not None:
            lines.append(_choice_line(ledger, subject, choice, shown))
    return "\n".join(lines)


def _choice_line(
    ledger: Ledger, subject: RunAtLoad, choice: Mapping[str, object], shown: Shown
) -> str:
    key = str(choice["settings"])
    grid, final = ledger.timings("grid", subject), ledger.timings("final", subject)
    fastest = max(final, key=lambda k: _speed(final[k]), default=None)
    if fastest is None or _speed(final[fastest]) < 1.0:
        fastest = None  # plain decoding
    ours = speedup_of(key, final)
    best = 1.0 if fastest is None else _speed(final[fastest])
    cells = [
        subject.run,
        str(subject.streams),
        f"{len(grid)} of {choice['settings_of_grid']}",
        shown(settings_of(key)),
        f"{choice['predicted']:.2f}",
        _spread(key, final),
        "none" if fastest is None else shown(settings_of(fastest)),
        "1" if fastest is None else _spread(fastest, final),
        "-" if ours is None or not final else f"{ours / best:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def methods_table(ledger: Ledger, subjects: Sequence[RunAtLoad], shown: Shown) -> str:
    """Return a line for each method that `recommend` compared, the fastest first."""
    lines = [_METHODS, "|---|---|---|---|---|---|"]
    for subject in subjects:
        found = ledger.of("recommendation", subject)
        timings = ledger.timings("method", subject)
        speeds = [(speedup_of(str(line["settings"]), timings) or 0.0, line) for line in found]
        for _, line in sorted(speeds, key=lambda pair: -pair[0]):
            key = str(line["settings"])
            cells = [
                subject.run,
                str(subject.streams),
                shown(settings_of(key)),
                f"{line['predicted']:.2f}",
                _spread(key, timings),
                "yes" if line["place"] == 0 else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def speedup_of(key: str, timings: Mapping[str, Sequence[Timing]]) -> float | None:
    """Return the median speed-up of settings; None if they were not measured."""
    if is_plain(key):
        return 1.0
    return _speed(timings[key]) if key in timings else None


def _speed(timings: Sequence[Timing]) -> float:
    return _figure(timings).median


def _figure(timings: Sequence[Timing]) -> Figure:
    return figure([timing.speedup for timing in timings])


def _spread(key: str, timings: Mapping[str, Sequence[Timing]]) -> str:
    if is_plain(key):
        return "1"
    if key not in timings:
        return "-"
    found = _figure(timings[key])
    return f"{found.median:.2f} [{found.p10:.2f}, {found.p90:.2f}]"
