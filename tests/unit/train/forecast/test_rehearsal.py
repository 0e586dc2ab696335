"""The pace of a training that is measured before it: which batches are timed."""

from pathlib import Path

import pytest

from specpipe.train.forecast.amounts import Amounts
from specpipe.train.forecast.forecast import describe_target
from specpipe.train.forecast.kinds import work_of
from specpipe.train.forecast.rehearsal import rehearse
from specpipe.train.job import DrafterKind, TrainingJob
from specpipe.train.loop import MOST_TIMED
from specpipe.train.medusa import medusa_kind
from specpipe.train.redrafter import redrafter_kind
from specpipe.train.report import TrainingReport
from specpipe.train.target import Target
from specpipe.train.text import Split, documents_a_step

LONG = Amounts(documents=40, tokens=40 * 60, positions=40 * 33)


def positions(job: TrainingJob) -> int:
    return sum(int((d.learned[1:-1] & d.learned[2:]).sum()) for d in job.text.training)


@pytest.mark.parametrize("batch_tokens", [7, 64, 100])
@pytest.mark.parametrize("seconds", [0.0, 8.0])  # for the hidden states of what is timed
@pytest.mark.parametrize("product", [medusa_kind, redrafter_kind])
def test_every_batch_that_is_timed_is_as_large_as_the_others(
    product, seconds: float, batch_tokens: int, make_run, target: Target, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A small batch at the end of an epoch would count as a step."""
    monkeypatch.setattr("specpipe.train.forecast.rehearsal.STATES_S", seconds)
    schedule = {"epochs": 8, "batch_tokens": batch_tokens, "checkpoint_every": 50}
    config = make_run(medusa={"schedule": schedule}, redrafter={"schedule": schedule})
    kind: DrafterKind = product(config)
    timed: list[int] = []

    def make(job: TrainingJob, out: Path) -> TrainingReport:
        timed.append(positions(job))
        return kind.make(job, out)

    _, model = describe_target(config)
    work = work_of(kind.kind, config.train, model)
    rehearse(job_of(config, target, tmp_path), make, work, LONG)
    (found,) = timed
    assert found >= MOST_TIMED * batch_tokens if seconds else 0 < found <= batch_tokens


def test_whole_documents_make_full_batches(make_run, target: Target, tmp_path: Path) -> None:
    schedule = {"epochs": 8, "batch_tokens": 128, "checkpoint_every": 50}
    config = make_run(medusa={"schedule": schedule, "stage": "medusa2"})
    kind, timed = medusa_kind(config), list[float]()

    def make(job: TrainingJob, out: Path) -> TrainingReport:
        documents = job.text.training
        timed.append(len(documents) / documents_a_step(documents, 128))
        return kind.make(job, out)

    _, model = describe_target(config)
    work = work_of("medusa", config.train, model)
    rehearse(job_of(config, target, tmp_path), make, work, LONG)
    assert timed[0] >= MOST_TIMED


def job_of(config, target: Target, folder: Path) -> TrainingJob:
    return TrainingJob(
        config, target, Split((), ()), folder, {}, lambda text: None, lambda done, total: None
    )
