"""Convert results to text and plain values for the command line; makes no decisions."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from specpipe.config.speculation import Speculation, redrafter_of
from specpipe.core.artifacts import MISSING
from specpipe.doctor.checks import Finding
from specpipe.run.stages import NOT_COMPARED, StageResult
from specpipe.serve.pieces import Generation
from specpipe.tune.candidates import is_tuned
from specpipe.tune.tune import MEASURED, Prediction, Tuning


def results_text(results: Sequence[StageResult]) -> str:
    """Return one line for each artifact."""
    if not results:
        return "nothing to do: this backend does not have this stage"
    lines = []
    for result in results:
        what = f"{result.stage} {result.role or ''}".strip()
        lines.append(f"{what:<16} {_state(result):<30} {result.path}")
    if any(not result.fresh and not result.seconds for result in results):
        lines.append("run `specpipe build` to build what is missing or stale")
    return "\n".join(lines)


def _state(result: StageResult) -> str:
    if result.fresh:
        return "up to date"
    why = "" if result.reason == MISSING else f" ({result.reason})"
    if result.seconds:
        return f"built in {result.seconds:.1f} s{why}"
    if result.reason.startswith(NOT_COMPARED):
        return f"built, {result.reason}"
    return "missing" if result.reason == MISSING else f"stale: {result.reason}"


def generation_text(answer: Generation) -> str:
    """Return the figures of one answer as one line."""
    tokens, accepted = answer.output_tokens, answer.acceptance.accepted_draft_tokens
    if tokens is None:
        return f"{answer.total_s:.2f} s; the server does not report the number of tokens"
    speed = f"{tokens} tokens in {answer.total_s:.2f} s ({tokens / answer.total_s:.1f} tokens/s)"
    if not answer.acceptance.reported:
        return f"{speed}; the server does not report draft tokens"
    if not answer.acceptance.draft_tokens:
        return f"{speed}; nothing was drafted"
    return (
        f"{speed}; accepted {accepted} of {answer.acceptance.draft_tokens} draft tokens "
        f"({answer.acceptance.rate:.0%}), {tokens / max(1, tokens - accepted):.2f} tokens per step"
    )


def generation_json(answer: Generation) -> dict[str, Any]:
    """Return one answer as plain values; null for what the server does not report."""
    found = answer.acceptance
    counts = (found.draft_tokens, found.accepted_draft_tokens, found.rate)
    drafted, accepted, rate = counts if found.reported else (None, None, None)
    return {
        "text": answer.text,
        "output_tokens": answer.output_tokens,
        "first_s": answer.first_s,
        "total_s": answer.total_s,
        "total_draft_tokens": drafted,
        "total_accepted_draft_tokens": accepted,
        "acceptance_rate": rate,
    }


def findings_text(findings: Sequence[Finding]) -> str:
    """Return one line for each finding, and one for each problem."""
    return "\n".join(
        f"{f.name:<36} {f.found}" + (f"\n{'':<36} problem: {f.problem}" if f.problem else "")
        for f in findings
    )


def settings_text(options: Speculation) -> str:
    """Return a method and its tuned settings as short text."""
    records = (options, redrafter_of(options))
    values = {
        field.name: getattr(record, field.name)
        for record in records if record is not None
        for field in fields(record)
        if is_tuned(record, field.name) and getattr(record, field.name)
    }  # fmt: skip
    if isinstance(values.get("tree"), tuple):
        values["tree"] = f"{len(values['tree'])} nodes"
    return " ".join([options.method, *(f"{name}={value}" for name, value in values.items())])


def predictions_text(found: Sequence[Prediction]) -> str:
    """Return a line for each method, and the recommendation."""
    width = max(len(settings_text(p.options)) for p in found)
    lines = [
        f"{'method, best settings':<{width}} {'tokens/step':>11} {'ms/token':>9} {'speed-up':>9}"
    ]
    lines += [
        f"{settings_text(p.options):<{width}} {p.tokens_a_step:>11.2f} {p.ms_a_token:>9.1f} "
        f"{p.speedup:>8.2f}x"
        for p in found
    ]
    best = found[0]
    why = (
        "no method is faster than plain decoding here"
        if best.options.method == "none"
        else f"{best.tokens_a_step:.2f} tokens per step, {best.ms_a_token:.1f} ms per token"
    )
    source = "figures: predicted for the held-out prompts (every second prompt)"
    advice = f"recommended: {settings_text(best.options)} ({why})"
    return "\n".join([*lines, "", source, advice])


def prediction_json(found: Prediction) -> dict[str, Any]:
    """Return one prediction as plain values."""
    return {
        "options": asdict(found.options),
        "tokens_per_step": found.tokens_a_step,
        "ms_per_token": found.ms_a_token,
        "predicted_speedup": found.speedup,
    }


def tuning_text(tuning: Tuning) -> str:
    """Return the settings that were tried, the best one and its figures, for people."""
    cost = ", ".join(
        f"{n}: {ms:.1f}" for n, ms in zip(tuning.cost.rows, tuning.cost.ms, strict=True)
    )
    shown = tuning.tried[:8]
    width = max([len("settings"), *(len(settings_text(p.options)) for p in shown)])
    lines = [
        f"time to verify n tokens, in ms   {cost}",
        "",
        "predicted for the prompts on which the settings are chosen (every second prompt)",
        f"{'settings':<{width}} {'tokens/step':>11} {'speed-up':>9}",
    ]
    lines += [
        f"{settings_text(p.options):<{width}} {p.tokens_a_step:>11.2f} {p.speedup:>8.2f}x"
        for p in shown
    ]
    lines += ["", f"best         {settings_text(tuning.best)}", *_held_out(tuning)]
    return "\n".join([*lines, f"break-even   {_break_even(tuning.break_even_batch)}"])


def _held_out(tuning: Tuning) -> list[str]:
    """Return the figures of the best settings on the prompts that did not choose them."""
    held, measured = tuning.holdout, tuning.measured_speedup
    lines = [
        f"held out     predicted for the other prompts: {held.tokens_a_step:.2f} tokens/step, "
        f"{held.speedup:.2f}x"
    ]
    if measured is None:
        return [*lines, "             not measured: the step times are of another machine"]
    return [
        *lines,
        f"             measured on at most {MEASURED} of them: {measured:.2f}x (time per token "
        "after prefill)",
    ]


def _break_even(batch: int) -> str:
    if batch < 1:
        limit = "speculation is never faster"
    else:
        limit = f"speculation is faster up to batch size {batch}"
    return f"{limit} with these step times"


def tuning_json(tuning: Tuning) -> dict[str, Any]:
    """Return the result of `tune` as plain values."""
    return {
        "best": asdict(tuning.best),
        "tokens_per_step": tuning.holdout.tokens_a_step,
        "predicted_speedup": tuning.holdout.speedup,
        "measured_speedup": tuning.measured_speedup,
        "break_even_batch": tuning.break_even_batch,
        "step_ms": dict(zip(tuning.cost.rows, tuning.cost.ms, strict=True)),
        "head_accuracy": tuning.accuracy,
        "tried": [prediction_json(p) for p in tuning.tried],
    }
