"""A recurrent drafter, from a job to a folder of files."""

from pathlib import Path

from specpipe.config.run_config import RunConfig
from specpipe.core.artifacts import Workspace
from specpipe.train.drafter import RecurrentNet, write_drafter
from specpipe.train.make_guesser import learn, report, write_calibration
from specpipe.train.produce import Job, Notify, Progress, TrainResult, produce
from specpipe.train.report import TrainingReport


def train_redrafter(
    config: RunConfig,
    workspace: Workspace,
    *,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> TrainResult:
    """Train a ReDrafter as `train.redrafter` specifies; a product that is up to date stays.

    Writes `model.safetensors` in Apple's names, `config.json`, `calibration.json` and a report.
    Raises ConfigError for text that cannot be used.
    """
    options = config.train.redrafter
    return produce(
        "redrafter", options, _redrafter, config, workspace, notify=notify, progress=progress
    )


def _redrafter(job: Job, out: Path) -> TrainingReport:
    options, target = job.config.train.redrafter, job.target
    net = RecurrentNet(
        options.draft_len, options.num_layers, target.embedding, job.config.train.seed
    )
    learned = learn(job, net, options, options.draft_len)
    write_drafter(net, int(target.output.shape[0]), out)
    write_calibration(learned.calibration, out)
    return report(f"ReDrafter for {job.config.name}", job, options, learned)
