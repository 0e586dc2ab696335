"""Convert the results of `tune` and `recommend` to text and plain values; makes no decisions."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from specpipe.cli.present import settings_text
from specpipe.tune.machine_load import MachineLoad
from specpipe.tune.result import Prediction, Raced, Recommendation, Tuning
from specpipe.validate.metrics import Figure

SHOWN = 8  # predictions


def recommendation_text(found: Recommendation) -> str:
    """Return a line for each method, and the recommendation."""
    width = max(len(settings_text(p.options)) for p in found.found)
    lines = [
        f"{'method, best settings':<{width}} {'tokens/step':>11} {'ms/token':>9} {'speed-up':>9}"
        f" {'measured':>22}"
    ]
    lines += [
        f"{settings_text(p.options):<{width}} {p.tokens_a_step:>11.2f} {p.ms_a_token:>9.1f} "
        f"{p.speedup:>8.2f}x {_measured(found.measured_of(p.options)):>22}"
        for p in found.found
    ]
    best = found.found[0]
    why = (
        "no method is faster than plain decoding here"
        if best.options.method == "none"
        else f"{best.tokens_a_step:.2f} tokens per step, {best.ms_a_token:.1f} ms per token"
    )
    source = "figures: predicted for the held-out prompts (every second prompt)"
    if found.measured:
        source += f"; measured on {found.measured[0].speedup.samples} of them, in turn"
    advice = f"recommended: {settings_text(best.options)} ({why})"
    return "\n".join([*lines, "", source, load_text(found.load), advice])


def _measured(found: Raced | None) -> str:
    return "-" if found is None else f"{found.overall:.2f}x {_range(found.speedup)}"


def _range(found: Figure) -> str:
    return f"[{found.p10:.2f}, {found.p90:.2f}]"


def prediction_json(found: Prediction) -> dict[str, Any]:
    """Return one prediction as plain values."""
    return {
        "options": asdict(found.options),
        "tokens_per_step": found.tokens_a_step,
        "ms_per_token": found.ms_a_token,
        "predicted_speedup": found.speedup,
    }


def recommendation_json(found: Recommendation) -> list[dict[str, Any]]:
    """Return each method as plain values, the best one first."""
    return [method_json(p, found.measured_of(p.options)) for p in found.found]


def method_json(found: Prediction, measured: Raced | None) -> dict[str, Any]:
    """Return one method of a recommendation as plain values."""
    return {
        "options": asdict(found.options),
        "tokens_per_step": found.tokens_a_step,
        "ms_per_token": found.ms_a_token,
        "predicted_speedup": found.speedup,
        "measured_speedup": measured.overall if measured else None,
    }


def tuning_text(tuning: Tuning) -> str:
    """Return the settings that were tried, the best one and its figures, for people."""
    cost = ", ".join(
        f"{n}: {ms:.1f}" for n, ms in zip(tuning.cost.rows, tuning.cost.ms, strict=True)
    )
    shown = tuning.tried[:SHOWN]
    width = max([len("settings"), *(len(settings_text(p.options)) for p in shown)])
    lines = [
        f"time to verify n tokens, in ms   {cost}" + (" (an estimate)" if tuning.estimated else ""),
        "",
        "predicted for the prompts on which the settings are chosen (every second prompt)",
        f"{'settings':<{width}} {'tokens/step':>11} {'speed-up':>9}",
    ]
    lines += [
        f"{settings_text(p.options):<{width}} {p.tokens_a_step:>11.2f} {p.speedup:>8.2f}x"
        for p in shown
    ]
    lines += ["", *_races(tuning.measured)]
    lines += [f"best         {settings_text(tuning.best)}", *_held_out(tuning)]
    if tuning.contradiction:
        lines.append(f"note         {tuning.contradiction}")
    lines.append(f"break-even   {_break_even(tuning.break_even_batch)}")
    return "\n".join([*lines, load_text(tuning.load)])


def _races(measured: Sequence[Raced]) -> list[str]:
    """Return the settings that were decoded, the fastest first."""
    if not measured:
        return []
    width = max(len(settings_text(found.options)) for found in measured)
    count = measured[0].speedup.samples
    return [
        f"measured on {count} of the other prompts in turn, after prefill: median ms per token "
        "[10th, 90th percentile]",
        f"{'settings':<{width}} {'ms/token':>20} {'without':>20} {'speed-up':>18} {'predicted':>9}",
        *(
            f"{settings_text(m.options):<{width}} {_spread(m.ms_a_token):>20} "
            f"{_spread(m.plain_ms_a_token):>20} {_measured(m):>18} {m.predicted:>8.2f}x"
            for m in measured
        ),
        "",
    ]


def _spread(found: Figure) -> str:
    return f"{found.median:.1f} [{found.p10:.1f}, {found.p90:.1f}]"


def _held_out(tuning: Tuning) -> list[str]:
    """Return the figures of the best settings on the prompts that did not choose them."""
    held, found = tuning.holdout, tuning.measured_best
    lines = [
        f"held out     predicted for the other prompts: {held.tokens_a_step:.2f} tokens/step, "
        f"{held.speedup:.2f}x"
    ]
    if tuning.elsewhere:
        return [*lines, "             not measured: the step times are of another machine"]
    if found is None:
        return lines
    return [
        *lines,
        f"             measured on {found.speedup.samples} of them: {found.overall:.2f}x "
        f"{_range(found.speedup)} (time per token after prefill)",
    ]


def load_text(load: MachineLoad) -> str:
    """Return whether the machine was quiet while times were measured."""
    others = "" if load.others is None else f"; other processes used {load.others:.1f} CPUs"
    figures = (
        f"load average {load.before:.1f} before, {load.during:.1f} at the end, "
        f"of {load.cpus} CPUs{others}"
    )
    if not load.disturbed:
        return f"machine      quiet: {figures}"
    return f"machine      NOT QUIET: {figures}; repeat this while nothing else runs"


def _break_even(batch: int) -> str:
    if batch < 1:
        limit = "speculation is never faster"
    else:
        limit = f"speculation is faster up to batch size {batch}"
    return f"{limit} with these step times"


def tuning_json(tuning: Tuning) -> dict[str, Any]:
    """Return the result of `tune` as plain values."""
    best = tuning.measured_best
    return {
        "best": asdict(tuning.best),
        "tokens_per_step": tuning.holdout.tokens_a_step,
        "predicted_speedup": tuning.holdout.speedup,
        "measured_speedup": best.overall if best else None,
        "measured": [asdict(found) for found in tuning.measured],
        "contradiction": tuning.contradiction,
        "machine": {**asdict(tuning.load), "disturbed": tuning.load.disturbed},
        "break_even_batch": tuning.break_even_batch,
        "step_ms": dict(zip(tuning.cost.rows, tuning.cost.ms, strict=True)),
        "estimated": tuning.estimated,
        "head_accuracy": tuning.accuracy,
        "tried": [prediction_json(p) for p in tuning.tried],
    }
