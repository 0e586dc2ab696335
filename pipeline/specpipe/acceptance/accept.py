"""Run the steps of every config; a config that fails does not stop the others."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from specpipe.acceptance.load import measure_load
from specpipe.acceptance.report import collect, prepare_report, write_machine, write_report
from specpipe.acceptance.session import ConfigResult, Outcome, Session
from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import SpecpipeError

URL = "127.0.0.1:8001"
Notify = Callable[[str], None]


@dataclass(frozen=True)
class AcceptanceResult:
    """The results of an acceptance, and the files that have them."""

    summary: Path
    archive: Path
    configs: tuple[ConfigResult, ...]

    @property
    def failed(self) -> list[str]:
        """Return the steps that failed or were skipped."""
        return [
            f"{case.name}: {step.step} {step.state}"
            for case in self.configs
            for step in case.steps
            if step.state != "ok"
        ]


def accept(
    configs: Sequence[Path],
    session: Session,
    steps: Sequence[str],
    *,
    notify: Notify = lambda text: None,
) -> AcceptanceResult:
    """Run `steps` of every config and write the report, also if it is interrupted.

    Raises ConfigError if the folder of the report has other files.
    """
    prepare_report(session.report)
    cases: list[ConfigResult] = []
    try:
        write_machine(session.report)
        for path in configs:
            run_case(session, path, steps, cases, notify)
    finally:
        summary, archive = write_report(session.report, cases)
        notify(f"report: {summary}; archive: {archive}")
    return AcceptanceResult(summary, archive, tuple(cases))


def run_case(
    session: Session, path: Path, steps: Sequence[str], cases: list[ConfigResult], notify: Notify
) -> None:
    """Run every step of one config, until one fails that the others need; appends to `cases`."""
    try:
        case = ConfigResult(path, read_config(path).name)
    except SpecpipeError as error:
        outcome = Outcome("config", "failed", 0.0, str(error).splitlines()[0])
        cases.append(ConfigResult(path, path.stem, [outcome]))
        return
    cases.append(case)
    with contextlib.ExitStack() as stack:
        for step in steps:
            notify(f"{case.name}: {step}")
            broken = case.broken
            if broken:
                case.steps.append(Outcome(step, "skipped", 0.0, f"{broken} failed"))
            else:
                case.steps.append(take_step(session, case, step, stack))
            last = case.steps[-1]
            notify(f"{case.name}: {step} {last.state} {last.note}".rstrip())
    collect(session.report, session.workspace, case)


def take_step(
    session: Session, case: ConfigResult, step: str, stack: contextlib.ExitStack
) -> Outcome:
    """Run one step; the server runs until `stack` ends."""
    run = ("--config", str(case.config), "--workspace", str(session.workspace))
    if step == "serve":
        return stack.enter_context(session.serve(case, (step, *run)))
    if step == "bench":
        repository = Workspace(session.workspace, case.name).repository
        return measure_load(URL, repository, session.output(case, step).with_suffix(".json"))
    further = {
        "plan": ("--json",),
        "build": ("--in-container",) if session.in_container else (),
        "validate": ("--url", URL),
    }
    return session.run(case, step, (step, *run, *further.get(step, ())))
