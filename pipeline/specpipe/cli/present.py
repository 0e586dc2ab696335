"""Convert results to text and plain values for the command line; makes no decisions."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from specpipe.config.speculation import Hybrid, Speculation, redrafter_of
from specpipe.core.artifacts import MISSING
from specpipe.doctor.checks import Finding
from specpipe.run.stages import NOT_COMPARED, StageResult
from specpipe.serve.pieces import Generation
from specpipe.tune.candidates import is_tuned


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
    nested = options.eagle3 if isinstance(options, Hybrid) else None
    records = (options, redrafter_of(options), nested)
    values = {
        field.name: getattr(record, field.name)
        for record in records if record is not None
        for field in fields(record)
        if is_tuned(record, field.name) and getattr(record, field.name)
    }  # fmt: skip
    if isinstance(values.get("tree"), tuple):
        values["tree"] = f"{len(values['tree'])} nodes"
    return " ".join([options.method, *(f"{name}={value}" for name, value in values.items())])
