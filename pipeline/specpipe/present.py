"""Results into text and plain values for the command line; no decisions are made here."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from specpipe.doctor import Finding
from specpipe.methods import Speculation, drafter_of
from specpipe.run import StageResult
from specpipe.serve.pieces import Generation
from specpipe.tune.candidates import is_tuned
from specpipe.tune.tune import Prediction, Tuning


def results_text(results: Sequence[StageResult]) -> str:
    """Return one line an artifact."""
    if not results:
        return "nothing to do: this backend has no such stage"
    lines = []
    for result in results:
        what = f"{result.stage} {result.role or ''}".strip()
        if result.fresh:
            state = "fresh"
        elif result.seconds:
            state = f"built in {result.seconds:.1f} s ({result.reason})"
        else:
            state = f"stale: {result.reason}"
        lines.append(f"{what:<16} {state:<30} {result.path}")
    return "\n".join(lines)


def generation_text(answer: Generation) -> str:
    """Return the figures of one answer in a line."""
    tokens, accepted = answer.output_tokens, answer.acceptance.accepted_draft_tokens
    if tokens is None:
        return f"{answer.total_s:.2f} s; the server does not report how many tokens"
    speed = f"{tokens} tokens in {answer.total_s:.2f} s ({tokens / answer.total_s:.1f} tokens/s)"
    if not answer.acceptance.draft_tokens:
        return f"{speed}; nothing was drafted"
    return (
        f"{speed}; accepted {accepted} of {answer.acceptance.draft_tokens} draft tokens "
        f"({answer.acceptance.rate:.0%}), {tokens / max(1, tokens - accepted):.2f} tokens a step"
    )


def generation_json(answer: Generation) -> dict[str, Any]:
    """Return one answer as plain values."""
    return {
        "text": answer.text,
        "output_tokens": answer.output_tokens,
        "first_s": answer.first_s,
        "total_s": answer.total_s,
        "total_draft_tokens": answer.acceptance.draft_tokens,
        "total_accepted_draft_tokens": answer.acceptance.accepted_draft_tokens,
        "acceptance_rate": answer.acceptance.rate,
    }


def findings_text(findings: Sequence[Finding]) -> str:
    """Return one line a finding."""
    return "\n".join(
        f"{f.name:<36} {f.found}" + (f"\n{'':<36} PROBLEM: {f.problem}" if f.problem else "")
        for f in findings
    )


def settings_text(options: Speculation) -> str:
    """Return a method with its tuned settings in a few words."""
    records = (options, drafter_of(options))
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
    """Return one line a method, and the advice."""
    width = max(len(settings_text(p.options)) for p in found)
    lines = [f"{'method at its best':<{width}} {'tokens/step':>11} {'ms/token':>9} {'speed-up':>9}"]
    lines += [
        f"{settings_text(p.options):<{width}} {p.tokens_a_step:>11.2f} {p.ms_a_token:>9.1f} "
        f"{p.speedup:>8.2f}x"
        for p in found
    ]
    best = found[0]
    why = (
        "nothing pays here"
        if best.options.method == "none"
        else f"{best.tokens_a_step:.2f} tokens a step at {best.ms_a_token:.1f} ms a token"
    )
    return "\n".join([*lines, "", f"recommended: {settings_text(best.options)}; {why}"])


def prediction_json(found: Prediction) -> dict[str, Any]:
    """Return one prediction as plain values."""
    return {
        "options": asdict(found.options),
        "tokens_per_step": found.tokens_a_step,
        "ms_per_token": found.ms_a_token,
        "predicted_speedup": found.speedup,
    }


def tuning_text(tuning: Tuning) -> str:
    """Return what was tried and what is best, for people."""
    cost = ", ".join(
        f"{n}: {ms:.1f}" for n, ms in zip(tuning.cost.rows, tuning.cost.ms, strict=True)
    )
    lines = [f"a step over n rows takes, in ms   {cost}", ""]
    lines.append(f"{'settings':<64} {'tokens/step':>11} {'predicted':>9}")
    lines += [
        f"{settings_text(p.options):<64} {p.tokens_a_step:>11.2f} {p.speedup:>8.2f}x"
        for p in tuning.tried[:8]
    ]
    held, measured = tuning.holdout, tuning.measured_speedup
    here = (
        "priced for another machine, not measured"
        if measured is None
        else f"measured {measured:.2f}x, without the reading of the prompt"
    )
    return "\n".join(
        [
            *lines,
            "",
            f"best        {settings_text(tuning.best)}",
            f"held out    {held.tokens_a_step:.2f} tokens/step; predicted {held.speedup:.2f}x; "
            + here,
            f"break-even  batch {tuning.break_even_batch}, on an engine of these step costs that "
            "scores a batch at once; openvino takes turns, where a batch changes nothing",
        ]
    )


def tuning_json(tuning: Tuning) -> dict[str, Any]:
    """Return a tuning as plain values."""
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
