"""Requests to the reference and to a server: what `answers` measures, then the other scenarios."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from specpipe.plan.gates import READ, why_unmeasured
from specpipe.runtime.context import most_positions
from specpipe.serve.client import Client
from specpipe.validate.accuracy import ROWS, Text, read
from specpipe.validate.arms import ServedArm
from specpipe.validate.checks import Check, check_front
from specpipe.validate.differences import NO_NOISE, Noise, differs
from specpipe.validate.judge import ReferenceModel
from specpipe.validate.measure import (
    ask_front,
    ask_reference,
    ask_server,
    decode,
    decodes_alike,
)
from specpipe.validate.noise import calibrate
from specpipe.validate.pairs import pair
from specpipe.validate.run_scenarios import merge, run_scenario
from specpipe.validate.scenarios import Measured, Scenario, Setup
from specpipe.validate.scenarios.answers import as_answers
from specpipe.validate.subject import Subject
from specpipe.validate.trials import Decoding, ExpectedAnswer, Likelihoods, Trial

Progress = Callable[[int, int], None]


@dataclass
class ServerResults:
    """The results of the servers."""

    trials: list[Trial] = field(default_factory=list)
    decodings: list[Decoding] = field(default_factory=list)
    readings: list[Likelihoods] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    noise: Noise = NO_NOISE
    measured: dict[str, Measured] = field(default_factory=dict)  # by scenario

    def add(self, other: "ServerResults") -> None:
        """Add the results of another server."""
        self.trials += other.trials
        self.decodings += other.decodings
        if self.noise.batch is None:
            self.noise = other.noise
        for name, found in other.measured.items():
            self.measured[name] = merge(self.measured.get(name, Measured()), found)


@dataclass(frozen=True)
class Recital:
    """What the reference answers and how it reads the texts; no texts if no server can."""

    trials: Sequence[Trial]
    expected: Mapping[int, ExpectedAnswer]
    texts: Sequence[Text] = ()
    readings: Sequence[Likelihoods] = ()


def hear_reference(subject: Subject, reference: ReferenceModel, progress: Progress) -> Recital:
    """Let the reference answer every prompt, and read the prompts and its answers."""
    questions = subject.questions
    trials, expected = ask_reference(reference, questions, subject.config.validate, progress)
    if why_unmeasured(READ[0], subject.config, subject.endpoint):
        return Recital(trials, expected)
    longest = _most_tokens(subject)
    texts = [
        Text(number, question.tokens, expected[number].tokens).cut(longest)
        for number, question in enumerate(questions.asked)
    ]
    readings = [read(text, "reference", reference.read(text.tokens[:-1], ROWS)) for text in texts]
    return Recital(trials, expected, texts, readings)


def _most_tokens(subject: Subject) -> int:
    """Return the number of tokens of a text for which the server can return logits."""
    engine = subject.config.engine
    logits = most_positions(subject.questions.tokenizer.vocab_size)
    return 1 + min(logits, engine.max_input_len, engine.max_seq_len - 1)


def ask_all(
    subject: Subject,
    client: Client,
    arms: Sequence[ServedArm],
    setup: Setup,
    scenarios: Sequence[Scenario],
    progress: Progress,
) -> ServerResults:
    """Measure a server: the answers of its arms, the other scenarios, and then the noise.

    The noise is calibrated only if something needs it: other scenarios, or a difference.
    """
    served = _ask(subject, client, arms, setup.expected, progress)
    for scenario in scenarios:
        if scenario.why_omitted(setup) is None:
            subject.notify(f"scenario {scenario.name}")
            found = run_scenario(scenario, client, setup, arms, progress)
            served.measured[scenario.name] = found
    plain = next((arm for arm in arms if arm.arm == "plain"), None)
    if plain is not None and (scenarios or _differ(subject, served, setup.expected)):
        most = subject.config.validate.max_tokens
        served.noise = calibrate(client, plain, subject.questions, most)
    return served


def _differ(
    subject: Subject, served: ServerResults, expected: Mapping[int, ExpectedAnswer]
) -> bool:
    """Tell whether any two answers that should be equal are not."""
    most = subject.config.validate.max_tokens
    answers = as_answers(served.trials, served.decodings, subject.questions, most)
    tokenizer = subject.questions.tokenizer
    return any(differs(contrast, tokenizer) for contrast in pair(answers, expected))


def _ask(
    subject: Subject,
    client: Client,
    arms: Sequence[ServedArm],
    expected: Mapping[int, ExpectedAnswer],
    progress: Progress,
) -> ServerResults:
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
    return ServerResults(trials, decodings)


def read_texts(
    client: Client, texts: Sequence[Text], arms: Sequence[ServedArm]
) -> Iterator[Likelihoods]:
    """Let the server read every text; its arms share one engine and so one reading."""
    for text in texts:
        found = read(text, arms[0].arm, client.context_logits(text.tokens[:-1]))
        for arm in arms:
            yield Likelihoods(found.prompt, arm.arm, found.log_likelihoods, found.chosen)


def check_fronts(subject: Subject, client: Client, trials: Sequence[Trial]) -> Iterator[Check]:
    """Send the first prompt to the other text models and check their answers."""
    answers = [t for t in trials if t.prompt == 0 and t.arm == subject.judged]
    question, most = subject.questions.asked[0], subject.config.validate.max_tokens
    for model in client.endpoint.texts[1:]:
        yield check_front(model.name, ask_front(client, model.name, question, most), answers)
