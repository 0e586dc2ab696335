"""Scenarios: one file each, a record of dataset, load, sampling, speculation and grader.

`config.scenarios` is their table. A scenario sees a server only through the client's interface. Its
requests are sent while the server runs; its grader runs afterwards and may use the reference.

Not here: gates and pages. A grader returns figures, tables and checks.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from specpipe.config.run_config import RunConfig
from specpipe.config.scenarios import SCENARIOS
from specpipe.core.endpoint import Endpoint
from specpipe.serve.client import Client, Options
from specpipe.validate.answers import Answer, PromptItem
from specpipe.validate.arms import ServedArm
from specpipe.validate.checks import Check
from specpipe.validate.depths import Depth
from specpipe.validate.differences import NO_NOISE, NO_PAIRS, Equality, Noise
from specpipe.validate.judge import Judge
from specpipe.validate.load import ClosedLoop, Traffic
from specpipe.validate.load_figures import LoadPoint
from specpipe.validate.metrics import Figure
from specpipe.validate.questions import Questions
from specpipe.validate.trials import Arm, ExpectedAnswer

Progress = Callable[[int, int], None]
Figures = Mapping[str, Mapping[Arm, Figure]]


@dataclass(frozen=True)
class Setup:
    """What is known before the first request of a scenario."""

    config: RunConfig
    endpoint: Endpoint
    questions: Questions
    model: Path = Path()  # the reference
    repository: Path | None = None  # of the server's tokenizer
    expected: Mapping[int, ExpectedAnswer] = field(default_factory=dict)  # of `answers`
    notify: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class Measured:
    """What was measured on the servers for one scenario."""

    answers: tuple[Answer, ...] = ()
    seconds: Mapping[tuple[str, Arm], float] = field(default_factory=dict)  # by load and arm
    extra: tuple[object, ...] = ()  # results of `Scenario.measure`


@dataclass(frozen=True)
class Grading:
    """What a grader may use, after the servers have stopped."""

    setup: Setup
    judge: Judge
    noise: Noise = NO_NOISE


@dataclass(frozen=True)
class Sheet:
    """A table of a result."""

    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Result:
    """What a scenario found."""

    scenario: str
    meaning: str = ""
    figures: Figures = field(default_factory=dict)  # by metric
    sheets: Sequence[Sheet] = ()
    equality: Equality = NO_PAIRS
    checks: Sequence[Check] = ()
    points: Sequence[LoadPoint] = ()  # one for each load and arm
    break_even: str | None = None  # the number of clients up to which speculation pays
    depths: Mapping[str, Sequence[Depth]] = field(default_factory=dict)  # by part of the answers
    omitted: str | None = None  # why it was not measured


def _no_prompts(setup: Setup) -> Sequence[PromptItem]:
    return ()


def _one_client(setup: Setup) -> Sequence[Traffic]:
    return (ClosedLoop(1),)


def _greedy(setup: Setup) -> Sequence[Options]:
    return (Options(max_tokens=setup.config.validate.max_tokens),)


def _measurable(setup: Setup) -> str | None:
    return None


def _nothing(client: Client, setup: Setup, arms: Sequence[ServedArm]) -> object:
    return None


@dataclass(frozen=True)
class Scenario:
    """What is sent, under which load, through which arms, and how the answers are judged."""

    name: str
    meaning: str  # one sentence for the report
    grade: Callable[[Measured, Grading], Result]
    dataset: Callable[[Setup], Sequence[PromptItem]] = _no_prompts  # `measure` sends its own
    loads: Callable[[Setup], Sequence[Traffic]] = _one_client
    sampling: Callable[[Setup], Sequence[Options]] = _greedy  # every prompt has each of them
    speculation: tuple[Arm, ...] = ("plain", "speculative")
    as_tokens: bool = False  # ask the model that takes tokens, where it decodes alike
    why_omitted: Callable[[Setup], str | None] = _measurable
    measure: Callable[[Client, Setup, Sequence[ServedArm]], object] = _nothing  # what is no answer


def load_scenarios(names: Sequence[str]) -> list[Scenario]:
    """Return scenarios of the table, in its order."""
    found = []
    for name, path in SCENARIOS.items():
        if name in names:
            module, attribute = path.split(":")
            found.append(getattr(importlib.import_module(module), attribute))
    return found
