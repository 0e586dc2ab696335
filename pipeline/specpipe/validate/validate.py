"""`specpipe validate`: measure, compare with the gates, report."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from specpipe.config.run_config import RunConfig
from specpipe.core.endpoint import Endpoint
from specpipe.core.errors import GateFailed
from specpipe.plan.gates import READ, Plain, plain_by, speculates, why_unmeasured
from specpipe.runtime.context import most_positions
from specpipe.serve.client import Client
from specpipe.validate.accuracy import ROWS, Text, read
from specpipe.validate.arms import ServedArm, served_arms
from specpipe.validate.checks import Check, check_front, check_plain_arm
from specpipe.validate.conditions import Setting
from specpipe.validate.gates import judge
from specpipe.validate.measure import (
    ask_front,
    ask_reference,
    ask_server,
    decode,
    decodes_alike,
    find_divergences,
)
from specpipe.validate.metrics import load_metrics
from specpipe.validate.questions import Questions
from specpipe.validate.report import Report
from specpipe.validate.tokenizers import check_tokenizer
from specpipe.validate.trials import (
    Arm,
    Decoding,
    Divergence,
    ExpectedAnswer,
    Likelihoods,
    Trial,
    Trials,
)

Progress = Callable[[int, int], None]
OpenServer = Callable[[], AbstractContextManager[Client]]


@dataclass(frozen=True)
class Subject:
    """The run that is validated, and the reference."""

    config: RunConfig
    endpoint: Endpoint
    model: Path  # the reference
    questions: Questions
    versions: Mapping[str, str]
    url: str | None = None  # of a server that is already running

    @property
    def plain(self) -> Plain:
        """Return what decodes without speculation; a server at a URL gets no baseline."""
        found = plain_by(self.config, self.endpoint.text)
        return "none" if found == "build" and self.url is not None else found

    @property
    def judged(self) -> Arm:
        """Return the arm that the gates apply to."""
        return "speculative" if speculates(self.config) else "plain"


@dataclass
class _Served:
    """The results of one server."""

    trials: list[Trial] = field(default_factory=list)
    decodings: list[Decoding] = field(default_factory=list)
    readings: list[Likelihoods] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


def validate(
    subject: Subject,
    ours: OpenServer,
    baseline: OpenServer | None = None,
    *,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Compare a server with transformers; `baseline` opens the server of a plain engine.

    The servers run one after the other, after the reference was removed from memory. Raises
    StageFailed if a server fails. The report shows whether the gates passed; `require_passed`
    raises if one did not.
    """
    theirs, expected, texts = _ask_reference(subject, progress)
    with ours() as client:
        arms = served_arms(subject.config, subject.endpoint.text)
        served = _ask(subject, client, arms, expected, progress)
        served.readings = [r for text in texts.texts for r in _read(client, text, arms)]
        served.checks += _check_fronts(subject, client, served.trials)
    if baseline is not None and subject.plain == "build":
        with baseline() as client:
            plain = _ask(subject, client, [ServedArm("plain")], expected, progress)
        served.trials += plain.trials
        served.decodings += plain.decodings
    trials = Trials(
        (*theirs, *served.trials),
        tuple(find_divergences(served.trials, served.decodings, expected)),
        (*texts.readings, *served.readings),
        tuple(served.decodings),
        _omitted(subject),
    )
    reports = subject.endpoint.text.reports_acceptance
    answers = [answer.tokens for answer in expected.values()]
    checks = [
        check_tokenizer(subject.model, subject.questions, answers),
        *check_plain_arm(trials, reports=reports),
        *served.checks,
    ]
    return _report(subject, trials, checks)


@dataclass(frozen=True)
class _Texts:
    """The texts that every model reads, and the reference's reading; empty if no server can."""

    texts: Sequence[Text] = ()
    readings: Sequence[Likelihoods] = ()


def _ask_reference(
    subject: Subject, progress: Progress
) -> tuple[list[Trial], dict[int, ExpectedAnswer], _Texts]:
    """Let the reference answer and read; it is in memory only during this call."""
    from specpipe.validate.reference import Reference

    reference, questions = Reference(subject.model), subject.questions
    trials, expected = ask_reference(reference, questions, subject.config.validate, progress)
    if why_unmeasured(READ[0], subject.config, subject.endpoint):
        return trials, expected, _Texts()
    longest = _most_tokens(subject)
    texts = [
        Text(number, question.tokens, expected[number].tokens).cut(longest)
        for number, question in enumerate(questions.asked)
    ]
    readings = [read(text, "reference", reference.read(text.tokens[:-1], ROWS)) for text in texts]
    return trials, expected, _Texts(texts, readings)


def _most_tokens(subject: Subject) -> int:
    """Return the number of tokens of a text for which the server can return logits."""
    engine = subject.config.engine
    logits = most_positions(subject.questions.tokenizer.vocab_size)
    return 1 + min(logits, engine.max_input_len, engine.max_seq_len - 1)


def _ask(
    subject: Subject,
    client: Client,
    arms: Sequence[ServedArm],
    expected: Mapping[int, ExpectedAnswer],
    progress: Progress,
) -> _Served:
    """Request every answer as text, and some answers also as tokens.

    Tokens are requested for every prompt of the judged arm, whose steps are counted, and for all
    other answers that diverge.
    """
    options, questions = subject.config.validate, subject.questions
    trials = ask_server(client, arms, questions.asked, options, progress)
    wrong = {(t.prompt, t.arm) for t in trials if not expected[t.prompt].agrees(t)}
    decodings = [
        decode(client, arm, number, questions, options.max_tokens)
        for arm in arms
        if decodes_alike(client.endpoint.tokens, arm.arm)
        for number in range(len(questions.asked))
        if arm.arm == subject.judged or (number, arm.arm) in wrong
    ]
    return _Served(trials, decodings)


def _read(client: Client, text: Text, arms: Sequence[ServedArm]) -> Iterator[Likelihoods]:
    """Let the server read a text; its arms share one engine and so one reading."""
    found = read(text, arms[0].arm, client.context_logits(text.tokens[:-1]))
    for arm in arms:
        yield Likelihoods(found.prompt, arm.arm, found.log_likelihoods, found.chosen)


def _check_fronts(subject: Subject, client: Client, trials: Sequence[Trial]) -> Iterator[Check]:
    """Send the first prompt to the other text models and check their answers."""
    answers = [t for t in trials if t.prompt == 0 and t.arm == subject.judged]
    question, most = subject.questions.asked[0], subject.config.validate.max_tokens
    for model in client.endpoint.texts[1:]:
        yield check_front(model.name, ask_front(client, model.name, question, most), answers)


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


def _report(subject: Subject, trials: Trials, checks: Sequence[Check]) -> Report:
    metrics = load_metrics()
    figures = {
        metric.name: {} if _left_out(metric.name, trials) else dict(metric.compute(trials))
        for metric in metrics
    }
    gates = judge(subject.config.validate.gates, metrics, figures, subject.judged)
    setting = Setting(subject.endpoint.text.name, subject.plain, subject.url, subject.versions)
    prompts = len(subject.questions.asked)
    words = token_words(subject.questions, trials.divergences)
    return Report(
        subject.config, prompts, metrics, figures, trials, gates, setting, tuple(checks), words
    )


def token_words(questions: Questions, found: Sequence[Divergence]) -> dict[int, str]:
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
