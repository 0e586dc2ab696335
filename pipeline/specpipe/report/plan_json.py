"""Convert a plan to plain values with every detail, for `--json`."""

from dataclasses import asdict
from typing import Any

from specpipe.plan.memory import Memory
from specpipe.plan.plan import Plan
from specpipe.plan.roofline import Estimate


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain values; `tune --cost-model` reads `estimate.costs`.

    `commands` are all commands that `build` would run, including those of the baseline.
    """
    commands = [*plan.commands, *(plan.baseline.commands if plan.baseline else ())]
    return {
        "name": plan.config.name,
        "buildable": not plan.rejections and not plan.gaps,
        "method": plan.config.speculation.method,
        "num_draft_tokens": plan.config.speculation.num_draft_tokens,
        "lossless": plan.config.lossless,
        "backend": plan.config.engine.backend,
        "tp_size": plan.config.engine.tp_size,
        "pp_size": plan.config.engine.pp_size,
        "versions": dict(plan.versions),
        "engines": {role: asdict(request) for role, request in plan.requests.items()},
        "memory": None if plan.memory is None else _memory_json(plan.memory),
        "estimate": None if plan.estimate is None else _estimate_json(plan.estimate),
        "commands": [
            {"stage": c.stage, "argv": list(c.argv), "env": dict(c.env)} for c in commands
        ],
        "baseline": None if plan.baseline is None else plan_json(plan.baseline),
        "files": dict(plan.files),
        "downloads": {role: asdict(download) for role, download in plan.downloads.items()},
        "rejections": [asdict(rejection) for rejection in plan.rejections],
        "not_yet": [asdict(gap) for gap in plan.gaps],
        "notes": list(plan.notes),
    }


def _memory_json(memory: Memory) -> dict[str, Any]:
    return {
        "estimate": True,
        "fits": memory.fits,
        "needed_bytes": dict(memory.needed),
        "available_bytes": memory.available,
        "usable_bytes": memory.usable,
        "parts": {
            role: {**asdict(part), "total": part.total} for role, part in memory.footprints.items()
        },
        "kv_cache": {role: asdict(budget) for role, budget in memory.kv.items()},
        "largest": asdict(memory.largest) if memory.largest else None,
    }


def _estimate_json(found: Estimate) -> dict[str, Any]:
    return {
        "measured": False,
        "context": found.context,
        "plain_ms": found.plain_ms,
        "verify_ms": found.verify_ms,
        "handover_ms": found.handover_ms,
        "break_even_tokens": found.break_even_tokens,
        "cases": [
            {
                "assumed": case.assumed.label,
                "tokens_a_step": case.assumed.tokens,
                "speedup": case.speedup,
                f"speedup_at_batch_{found.batch}": case.speedup_full,
                "pays_at_batches": case.pays,
            }
            for case in found.cases
        ],
        "costs": {
            "step_ms": {str(rows): ms for rows, ms in found.costs.items()},
            "heads_ms": found.heads_ms,
            "draft_ms": found.draft_ms,
            "handover_ms": found.handover_ms,
        },
    }
