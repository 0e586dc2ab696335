"""`specpipe validate`: measure, compare with the gates, report."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from specpipe.core.errors import GateFailed
from specpipe.plan.gates import READ, speculates, why_unmeasured
from specpipe.serve.client import Client
from specpipe.validate.arms import ServedArm, served_arms
from specpipe.validate.asking import (
    Progress,
    Recital,
    ServerResults,
    ask_all,
    check_fronts,
    hear_reference,
    read_texts,
)
from specpipe.validate.checks import Check, check_plain_arm
from specpipe.validate.conditions import Setting
from specpipe.validate.differences import Noise
from specpipe.validate.gates import judge
from specpipe.validate.judge import Judge, ReferenceModel
from specpipe.validate.measure import find_divergences
from specpipe.validate.metrics import Figure, load_metrics
from specpipe.validate.noise import with_precision
from specpipe.validate.questions import Questions
from specpipe.validate.report import Report
from specpipe.validate.run_scenarios import grade_all
from specpipe.validate.scenarios import Grading, Measured, Result, Scenario, Setup, load_scenarios
from specpipe.validate.scenarios.answers import SCENARIO as ANSWERS
from specpipe.validate.scenarios.answers import as_answers
from specpipe.validate.subject import Subject
from specpipe.validate.tokenizers import check_tokenizer
from specpipe.validate.trials import Arm, Divergence, Trials

OpenServer = Callable[[], AbstractContextManager[Client]]
OpenReference = Callable[[], ReferenceModel]


def validate(
    subject: Subject,
    ours: OpenServer,
    baseline: OpenServer | None = None,
    *,
    open_reference: OpenReference | None = None,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Compare a server with transformers; `baseline` opens the server of a plain engine.

    The servers run one after the other, after the reference was removed from memory. If a grader
    needs the reference, it is loaded once more after them. Raises StageFailed if a server fails.
    The report shows whether the gates passed; `require_passed` raises if one did not.
    """
    opened = open_reference or (lambda: _load_reference(subject))
    recital = hear_reference(subject, opened(), progress)
    scenarios = [s for s in load_scenarios(subject.scenarios) if s is not ANSWERS]
    setup = _setup(subject, recital)
    with ours() as client:
        arms = served_arms(subject.config, subject.endpoint.text)
        served = ask_all(subject, client, arms, setup, scenarios, progress)
        served.readings = list(read_texts(client, recital.texts, arms))
        served.checks += check_fronts(subject, client, served.trials)
    if baseline is not None and subject.plain == "build":
        with baseline() as client:
            plain = [ServedArm("plain")]
            served.add(ask_all(subject, client, plain, setup, scenarios, progress))
    grading = Grading(setup, Judge(opened), _noise(subject, served, recital))
    results = _grade(subject, served, scenarios, grading)
    trials = _trials(subject, served, recital, results)
    checks = _checks(subject, trials, served, recital, results)
    answers = tuple(a for found in served.measured.values() for a in found.answers)
    report = _report(subject, trials, checks)
    return replace(report, results=tuple(results), answers=answers, noise=grading.noise)


def _load_reference(subject: Subject) -> ReferenceModel:
    """Load transformers' model; it stays in memory as long as the caller keeps it."""
    from specpipe.validate.reference import Reference

    return Reference(subject.model)


def _setup(subject: Subject, recital: Recital) -> Setup:
    return Setup(
        subject.config, subject.endpoint, subject.questions, subject.model, subject.repository,
        recital.expected, subject.notify,
    )  # fmt: skip


def _noise(subject: Subject, served: ServerResults, recital: Recital) -> Noise:
    """Return the noise of the run, the engine's distance from the reference included."""
    arm: Arm = "plain" if any(r.arm == "plain" for r in served.readings) else subject.judged
    return with_precision(served.noise, (*recital.readings, *served.readings), arm)


def _grade(
    subject: Subject, served: ServerResults, scenarios: Sequence[Scenario], grading: Grading
) -> list[Result]:
    """Grade `answers` and the other scenarios."""
    most = subject.config.validate.max_tokens
    answers = as_answers(served.trials, served.decodings, subject.questions, most)
    measured = {"answers": Measured(answers), **served.measured}
    return grade_all([ANSWERS, *scenarios], measured, grading)


def _trials(
    subject: Subject, served: ServerResults, recital: Recital, results: Sequence[Result]
) -> Trials:
    return Trials(
        (*recital.trials, *served.trials),
        tuple(find_divergences(served.trials, served.decodings, recital.expected)),
        (*recital.readings, *served.readings),
        tuple(served.decodings),
        _omitted(subject),
        scenario_figures(results),
    )


def scenario_figures(results: Sequence[Result]) -> dict[str, dict[Arm, Figure]]:
    """Return the figures of all scenarios by metric, and the number of defects in all of them."""
    found: dict[str, dict[Arm, Figure]] = defaultdict(dict)
    for result in results:
        for name, figures in result.figures.items():
            found[name].update(figures)
    pairs = [pair for result in results for pair in result.equality.compared.items()]
    for arm in dict.fromkeys(arm for (arm, _), _ in pairs):
        compared = sum(count for (one, _), count in pairs if one == arm)
        differences = (d for r in results for d in r.equality.differences if d.arm == arm)
        defects = float(sum(d.kind == "defect" for d in differences))
        found["defects"][arm] = Figure(defects, defects, defects, compared)
    return dict(found)


def _omitted(subject: Subject) -> dict[str, str]:
    """Return why a metric cannot be measured here, for every such metric."""
    config, endpoint = subject.config, subject.endpoint
    found = {name: why_unmeasured(name, config, endpoint) for name in (*READ, "speedup_over_plain")}
    if subject.url is not None:
        found["speedup_over_reference"] = (
            "transformers ran on this machine, and the server may run on another"
        )
        if speculates(config) and subject.plain == "none" and not found["speedup_over_plain"]:
            found["speedup_over_plain"] = "a server that is already running gets no baseline"
    return {name: reason for name, reason in found.items() if reason}


def _checks(
    subject: Subject,
    trials: Trials,
    served: ServerResults,
    recital: Recital,
    results: Sequence[Result],
) -> tuple[Check, ...]:
    answers = [answer.tokens for answer in recital.expected.values()]
    return (
        check_tokenizer(subject.model, subject.questions, answers),
        *check_plain_arm(trials, reports=subject.endpoint.text.reports_acceptance),
        *served.checks,
        *(check for result in results for check in result.checks),
    )


def _report(subject: Subject, trials: Trials, checks: tuple[Check, ...]) -> Report:
    metrics = load_metrics()
    figures = {
        metric.name: {} if _left_out(metric.name, trials) else dict(metric.compute(trials))
        for metric in metrics
    }
    gates = judge(subject.config.validate.gates, metrics, figures, subject.judged)
    setting = Setting(subject.endpoint.text.name, subject.plain, subject.url, subject.versions)
    prompts = len(subject.questions.asked)
    words = token_words(subject.questions, trials.divergences)
    return Report(subject.config, prompts, metrics, figures, trials, gates, setting, checks, words)


def token_words(questions: Questions, found: Sequence[Divergence]) -> Mapping[int, str]:
    """Return the text of every token at which an answer diverges, by id."""
    ids = {i for d in found for i in (d.got, d.expected) if i is not None}
    decode_ids = questions.tokenizer.tokenizer.decode
    return {i: decode_ids([i], skip_special_tokens=False) for i in sorted(ids)}


def _left_out(name: str, trials: Trials) -> bool:
    return name in trials.omitted and name not in READ  # the reference's reading is kept


def require_passed(report: Report) -> None:
    """Raise GateFailed naming every gate and every check that did not pass."""
    failed = [str(gate) for gate in report.gates if not gate.passed]
    failed += [str(check) for check in report.checks if not check.passed]
    if failed:
        raise GateFailed("; ".join(failed))
