"""What the training of heads and of drafters has in common, from a job's text to its report."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from specpipe.checkpoint.guesser import CALIBRATION
from specpipe.config.training import GuesserTraining
from specpipe.core.artifacts import write_text
from specpipe.core.contracts import Ints
from specpipe.train.accuracy import Calibration, HeadAccuracy
from specpipe.train.features import Features, read_features
from specpipe.train.guesser import GuesserNet, GuesserTask, judge
from specpipe.train.loop import Point, steps_per_epoch
from specpipe.train.loss import Vocabulary, frequent_tokens
from specpipe.train.produce import Job, text_facts
from specpipe.train.report import TrainingReport


@dataclass(frozen=True)
class Learned:
    """What a training came to."""

    curve: tuple[Point, ...]
    before: Sequence[HeadAccuracy]
    after: Sequence[HeadAccuracy]
    calibration: Calibration


def learn(job: Job, net: GuesserNet, options: GuesserTraining, guesses: int) -> Learned:
    """Train `net`, which drafts `guesses` tokens, on the frozen target's hidden states."""
    output, seed = job.target.output, job.config.train.seed
    training, held_out = _features(job, guesses)
    before, _ = judge(net, output, held_out)
    tokens = vocabulary(job, training.spoken[:, 1:], options)
    task = GuesserTask(net, output, training, held_out, tokens, options, seed)
    steps = steps_per_epoch(options.schedule.batch_tokens, len(training))
    curve = job.train(task, options.schedule, steps)
    return Learned(curve, before, *judge(net, output, held_out))


def _features(job: Job, guesses: int) -> tuple[Features, Features]:
    job.notify("computing the hidden states of the target that are not cached")
    first, second = (
        read_features(job.target, documents, guesses, job.work, progress=job.progress)
        for documents in (job.text.training, job.text.held_out)
    )
    return first, second


def vocabulary(job: Job, labels: Ints, options: GuesserTraining) -> Vocabulary:
    """Return the tokens that a loss is over, the most frequent of `labels` among them."""
    frequent = frequent_tokens(labels, options.loss_vocabulary)
    return Vocabulary(int(job.target.output.shape[0]), frequent, options.loss_samples)


def write_calibration(calibration: Calibration, folder: Path) -> None:
    """Write calibration.json, which trees are grown from."""
    text = json.dumps(calibration.to_json(), indent=1, sort_keys=True) + "\n"
    write_text(folder / CALIBRATION, text)


def report(title: str, job: Job, options: GuesserTraining, learned: Learned) -> TrainingReport:
    """Return the report of a training."""
    return TrainingReport(
        title,
        {
            **text_facts(job),
            **{k: v for k, v in asdict(options).items() if k != "schedule"},
            **asdict(options.schedule),
            "steps": learned.curve[-1].step,
        },
        learned.curve,
        {f"head {k} top-1": head.top[0] for k, head in enumerate(learned.before)},
        {f"head {k} top-1": head.top[0] for k, head in enumerate(learned.after)},
        learned.after,
    )
