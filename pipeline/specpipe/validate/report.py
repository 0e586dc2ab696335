"""The record of a validation, and its files: report.json, report.md, report.html, trials.jsonl."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from specpipe.config.run_config import RunConfig
from specpipe.core.artifacts import write_text
from specpipe.validate.answers import Answer
from specpipe.validate.checks import Check
from specpipe.validate.conditions import Setting, conditions
from specpipe.validate.depths import Depth, by_depth
from specpipe.validate.differences import NO_NOISE, Difference, Noise
from specpipe.validate.gates import GateResult
from specpipe.validate.metrics import Figure, Metric, speedups_by_prompt
from specpipe.validate.scenarios import Result
from specpipe.validate.trials import Arm, Trials

LABELS: dict[Arm, str] = {
    "reference": "transformers, float32",
    "plain": "plain decoding",
    "speculative": "speculative decoding",
}


@dataclass(frozen=True)
class Report:
    """The results of a validation, and its conditions."""

    config: RunConfig
    prompts: int
    metrics: Sequence[Metric]
    figures: Mapping[str, Mapping[Arm, Figure]]
    trials: Trials
    gates: Sequence[GateResult]
    setting: Setting
    checks: tuple[Check, ...] = ()
    words: Mapping[int, str] = field(default_factory=dict)  # text of tokens in divergences
    results: tuple[Result, ...] = ()  # of the scenarios
    answers: tuple[Answer, ...] = ()  # of the scenarios but `answers`
    noise: Noise = NO_NOISE

    @property
    def passed(self) -> bool:
        """Whether every gate and every check passed."""
        return all(gate.passed for gate in self.gates) and all(c.passed for c in self.checks)

    def histogram(self) -> dict[int, int]:
        """Return the number of steps by accepted draft tokens; empty if the server hides steps."""
        return dict(sorted(Counter(count - 1 for count in self._steps()).items()))

    def depths(self) -> list[Depth]:
        """Return the acceptance by depth of the prompts; empty if the server hides steps."""
        return by_depth(self._steps())

    def _steps(self) -> list[int]:
        decodings = [d for d in self.trials.decodings if d.arm == "speculative"]
        return [count for decoding in decodings for count in decoding.step_tokens]

    def differences(self) -> list[Difference]:
        """Return the classified differences of all scenarios."""
        return [d for result in self.results for d in result.equality.differences]

    def conditions(self) -> dict[str, str]:
        """Return the conditions of the figures."""
        return conditions(self.config, self.prompts, self.setting)


def write_report(report: Report, folder: Path) -> Path:
    """Write the four files into `folder`; returns the path of the HTML page."""
    from specpipe.validate.markdown import to_markdown
    from specpipe.validate.page import to_html

    write_text(folder / "report.json", json.dumps(to_json(report), indent=2) + "\n")
    write_text(folder / "report.md", to_markdown(report))
    write_text(folder / "trials.jsonl", to_lines(report))
    write_text(folder / "report.html", to_html(report))
    return folder / "report.html"


def to_json(report: Report) -> dict[str, object]:
    """Return the report as plain values, raw trials included."""
    return {
        "passed": report.passed,
        "conditions": report.conditions(),
        "metrics": {
            metric.name: {
                "unit": metric.unit,
                "larger_is_better": metric.larger_is_better,
                "meaning": metric.meaning,
                "arms": {a: asdict(f) for a, f in report.figures[metric.name].items()},
            }
            for metric in report.metrics
        },
        "speedups": speedups_by_prompt(report.trials, "plain", "speculative"),
        "acceptance_histogram": report.histogram(),
        "divergences": [asdict(d) for d in report.trials.divergences],
        "noise": {**asdict(report.noise), "limit": report.noise.limit},
        "scenarios": [result_json(result) for result in report.results],
        "gates": [asdict(gate) for gate in report.gates],
        "checks": [asdict(check) for check in report.checks],
        "left_out": dict(report.trials.omitted),
        "trials": [asdict(trial) for trial in report.trials.trials],
    }


def result_json(result: Result) -> dict[str, object]:
    """Return the result of a scenario as plain values; its figures are among the metrics."""
    equality = result.equality
    return {
        "scenario": result.scenario,
        "meaning": result.meaning,
        "left_out": result.omitted,
        "compared": [
            {"arm": arm, "against": against, "answers": count}
            for (arm, against), count in equality.compared.items()
        ],
        "differences": [asdict(d) for d in equality.differences],
        "tables": [
            {"title": sheet.title, "note": sheet.note, "head": list(sheet.head),
             "rows": [list(row) for row in sheet.rows]}
            for sheet in result.sheets
        ],
        "points": [asdict(point) for point in result.points],
        "break_even": result.break_even,
        "depths": {
            name: [{**asdict(d), "joint": d.joint, "conditional": d.conditional} for d in depths]
            for name, depths in result.depths.items()
        },
    }  # fmt: skip


def to_lines(report: Report) -> str:
    """Return every request as a line of JSON; prompts by number and length."""
    lines = [{"scenario": "answers", **asdict(trial)} for trial in report.trials.trials]
    for answer in report.answers:
        values = asdict(answer)
        lines.append({**values, "asked": len(answer.asked)})
    return "".join(json.dumps(line) + "\n" for line in lines)
