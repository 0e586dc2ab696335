"""Tasks of lm-evaluation-harness on the served endpoint, and on the reference.

The harness's own client sends its requests to the OpenAI front before the server. The reference is
the harness's `hf` model in float32, with the same tasks. A flip is a document that one of both
answers right and the other wrong: equal accuracies can hide many of them.
"""

import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from specpipe.core.errors import SpecpipeError
from specpipe.core.statistics import wilson
from specpipe.openai.app import Front, FrontOptions
from specpipe.openai.server import FrontAddress, serve_front
from specpipe.serve.client import Client
from specpipe.serve.http.base import is_http
from specpipe.validate.arms import ServedArm
from specpipe.validate.checks import Check
from specpipe.validate.harness import Evaluation, evaluate
from specpipe.validate.metrics import Figure, share_of
from specpipe.validate.scenarios import Grading, Measured, Result, Scenario, Setup, Sheet
from specpipe.validate.trials import Arm

NAME = "specpipe"


@dataclass(frozen=True)
class TaskScore:
    """The documents of one task, through the server and the reference."""

    task: str
    documents: int
    right: int
    reference_right: int
    lost: int  # right in the reference, wrong on the server
    won: int  # the other way round

    @property
    def flips(self) -> float:
        """Share of documents with another verdict than the reference's."""
        return (self.lost + self.won) / self.documents


@dataclass(frozen=True)
class ServedEvaluation:
    """What an arm scored."""

    arm: Arm
    evaluation: Evaluation | str  # or why lm_eval failed


def why_omitted(setup: Setup) -> str | None:
    """Return why no task is run."""
    if not setup.config.validate.tasks.names:
        return "validate.tasks.names is empty"
    if setup.repository is None or setup.model.is_file():
        return "lm-evaluation-harness needs a folder with the model and its tokenizer"
    return None


def measure(client: Client, setup: Setup, arms: Sequence[ServedArm]) -> "ServedEvaluation | None":
    """Run the tasks against the OpenAI front before the server, as users call it.

    The arm that users call takes part only; no request of the harness turns speculation off.
    """
    users = [arm for arm in arms if arm.num_draft_tokens is None]
    if not users or setup.repository is None:
        return None
    setup.notify("running lm_eval on the server")
    with _openai(client, setup) as (url, name):
        arguments = {
            "model": name, "base_url": f"{url}/completions", "tokenizer": str(setup.model),
            "max_length": str(setup.config.engine.max_seq_len - 1),
        }  # fmt: skip
        found = _evaluate(setup, "local-completions", arguments)
    return ServedEvaluation(users[-1].arm, found)


@contextmanager
def _openai(client: Client, setup: Setup) -> Iterator[tuple[str, str]]:
    """Yield the base URL of the server's OpenAI API and the name of its model.

    A Triton server gets a front of its own until the block ends.
    """
    if is_http(client.url):
        yield client.url.rstrip("/"), client.endpoint.text.name
        return
    assert setup.repository is not None  # `why_omitted` has checked it
    tokenizer = setup.repository / setup.endpoint.tokenizer
    front = Front(FrontOptions(client.url, NAME, tokenizer=tokenizer), lambda: setup.endpoint)
    address = FrontAddress(port=_free_port())
    with serve_front(front, address):
        yield address.url, NAME


def _evaluate(setup: Setup, model: str, arguments: dict[str, str]) -> Evaluation | str:
    """Return the scores, or why there are none: other scenarios must not be lost for it."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            return evaluate(setup.config.validate.tasks, model, arguments, Path(folder))
    except SpecpipeError as error:
        return str(error)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def grade(measured: Measured, grading: Grading) -> Result:
    """Run the tasks on the reference, and compare document by document."""
    setup = grading.setup
    setup.notify("running lm_eval on the reference")
    arguments = {"pretrained": str(setup.model), "dtype": "float32"}
    theirs = _evaluate(setup, "hf", arguments)
    sheets: list[Sheet] = []
    figures: dict[str, dict[Arm, Figure]] = {}
    failed = [theirs] if isinstance(theirs, str) else []
    known = Evaluation({}, {}) if isinstance(theirs, str) else theirs
    for found in measured.extra:
        assert isinstance(found, ServedEvaluation)
        if isinstance(found.evaluation, str):
            failed.append(found.evaluation)
            continue
        scores = list(score(found.evaluation, known))
        sheets += [_sheet(found.arm, scores), _raw(found.arm, found.evaluation, known)]
        figures |= {name: {found.arm: value} for name, value in _figures(scores)}
    check = Check("lm_eval runs the tasks", not failed, "; ".join(failed) or "both models")
    return Result("tasks", figures=figures, sheets=sheets, checks=(check,))


def score(ours: Evaluation, theirs: Evaluation) -> Iterator[TaskScore]:
    """Yield the score of every task whose documents are right or wrong."""
    for task, found in ours.samples.items():
        both = [(right, theirs.samples[task][key]) for key, right in found.items()
                if key in theirs.samples.get(task, {})]  # fmt: skip
        if both:
            yield TaskScore(
                task, len(both), sum(a for a, _ in both), sum(b for _, b in both),
                sum(b and not a for a, b in both), sum(a and not b for a, b in both),
            )  # fmt: skip


def _figures(scores: Sequence[TaskScore]) -> Iterator[tuple[str, Figure]]:
    count = sum(s.documents for s in scores)
    if count:
        right = sum(s.right for s in scores)
        share, flips = right / count, sum(s.flips * s.documents for s in scores) / count
        accuracy = share_of(share, count)
        yield "task_accuracy", replace(accuracy, interval=wilson(right, count))
        yield "task_flips", share_of(flips, count)


def _sheet(arm: Arm, scores: Sequence[TaskScore]) -> Sheet:
    head = ("task", "documents", "accuracy [95 %]", "reference [95 %]", "right to wrong",
            "wrong to right")  # fmt: skip
    rows = [
        [s.task, str(s.documents), _share(s.right, s.documents),
         _share(s.reference_right, s.documents), str(s.lost), str(s.won)]
        for s in scores
    ]  # fmt: skip
    return Sheet(f"Tasks, {arm} decoding", "Intervals are Wilson's, binomial.", head, rows)


def _share(right: int, total: int) -> str:
    low, high = wilson(right, total)
    return f"{right / total:.3f} [{low:.3f}, {high:.3f}]"


def _raw(arm: Arm, ours: Evaluation, theirs: Evaluation) -> Sheet:
    """Return every figure that the harness printed."""
    rows = [
        [task, name, _plain(value), _plain(theirs.figures.get(task, {}).get(name))]
        for task, values in ours.figures.items()
        for name, value in values.items()
        if isinstance(value, (int, float)) and "stderr" not in name and name != "sample_len"
    ]
    title = f"Figures of lm-evaluation-harness, {arm} decoding"
    return Sheet(
        title, "As the harness computes them.", ("task", "metric", "server", "reference"), rows
    )


def _plain(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, (int, float)) else "-"


SCENARIO = Scenario(
    "tasks",
    "Tasks of lm-evaluation-harness through the OpenAI front, compared with the reference.",
    grade,
    why_omitted=why_omitted,
    measure=measure,
)
