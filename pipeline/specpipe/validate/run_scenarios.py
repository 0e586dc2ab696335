"""Sends the requests of scenarios to a server, and grades what was measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from specpipe.serve.client import Client, Options
from specpipe.validate.answers import Answer, PromptRequest, ask
from specpipe.validate.arms import ServedArm
from specpipe.validate.load import Progress, Traffic, run_load
from specpipe.validate.measure import decodes_alike
from specpipe.validate.questions import Questions
from specpipe.validate.scenarios import Grading, Measured, Result, Scenario, Setup

WARM_UP_TOKENS = 8
SEEDS = 1_000_000  # between the seeds of the arms


def run_scenario(
    scenario: Scenario,
    client: Client,
    setup: Setup,
    arms: Sequence[ServedArm],
    progress: Progress = lambda done, total: None,
) -> Measured:
    """Send every request of a scenario through its arms; loads and arms take turns.

    Raises what the client raises only while it warms up: later errors become answers.
    """
    chosen = [arm for arm in arms if arm.arm in scenario.speculation]
    if scenario.why_omitted(setup) is not None or not chosen:
        return Measured()
    answers: list[Answer] = []
    seconds = {}
    for number, load in enumerate(scenario.loads(setup)):
        for arm in chosen if number % 2 else reversed(chosen):
            found, took = _send(scenario, client, setup, arm, load, progress)
            answers += found
            seconds[str(load), arm.arm] = took
    extra = scenario.measure(client, setup, chosen)
    return Measured(tuple(answers), seconds, () if extra is None else (extra,))


def _send(
    scenario: Scenario,
    client: Client,
    setup: Setup,
    arm: ServedArm,
    load: Traffic,
    progress: Progress,
) -> tuple[list[Answer], float]:
    """Send all prompts through one arm under one load."""
    requests = list(requests_of(scenario, client, setup, arm, load))
    if not requests:
        return [], 0.0
    questions = setup.questions
    few = replace(requests[0].options, max_tokens=WARM_UP_TOKENS)
    ask(client, replace(requests[0], options=few), questions)
    jobs = [_job(client, request, questions) for request in requests]
    sent, took = run_load(load, jobs, progress)
    return [replace(one.result, sent_s=one.sent_s) for one in sent], took


def _job(client: Client, request: PromptRequest, questions: Questions) -> Callable[[], Answer]:
    return lambda: ask(client, request, questions)


def requests_of(
    scenario: Scenario, client: Client, setup: Setup, arm: ServedArm, load: Traffic
) -> Iterator[PromptRequest]:
    """Yield a request for every prompt and every sampling options of a scenario."""
    as_tokens = scenario.as_tokens and decodes_alike(client.endpoint.tokens, arm.arm)
    for number, item in enumerate(scenario.dataset(setup)):
        for options in scenario.sampling(setup):
            options = _independent(options, arm)
            yield PromptRequest(scenario.name, item, number, arm, str(load), options, as_tokens)


def _independent(options: Options, arm: ServedArm) -> Options:
    """Return options with a seed of the arm's own: equal seeds may give both arms equal draws."""
    if options.seed is None or arm.arm != "speculative":
        return options
    return replace(options, seed=options.seed + SEEDS)


def merge(first: Measured, second: Measured) -> Measured:
    """Put together what two servers answered."""
    return Measured(
        (*first.answers, *second.answers),
        {**first.seconds, **second.seconds},
        (*first.extra, *second.extra),
    )


def grade_all(
    scenarios: Sequence[Scenario], measured: Mapping[str, Measured], grading: Grading
) -> list[Result]:
    """Return the result of every scenario; one that was left out has the reason."""
    found = []
    for scenario in scenarios:
        reason = scenario.why_omitted(grading.setup)
        got = measured.get(scenario.name, Measured())
        if reason is None and not got.answers and not got.extra:
            reason = "no arm of this server takes part in it"
        result = Result(scenario.name, omitted=reason)
        if reason is None:
            grading.setup.notify(f"grading {scenario.name}")
            result = scenario.grade(got, grading)
        found.append(replace(result, meaning=scenario.meaning))
    return found
