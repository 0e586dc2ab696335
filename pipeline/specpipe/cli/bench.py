"""`specpipe bench`: figures of runs on this machine, as Markdown tables or JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specpipe.cli.bench_costs import costs
from specpipe.cli.bench_options import (
    count_option,
    precision_option,
    prompts_option,
    remote_options,
    require_one,
    without_url,
)
from specpipe.cli.bench_report import load_runs, report
from specpipe.cli.bench_servers import front, serving, soak
from specpipe.cli.options import configs_argument, json_option, workspace_option
from specpipe.cli.output import counted, say

if TYPE_CHECKING:
    from specpipe.bench.served import Progress, Remote
    from specpipe.run.run import Run


@click.group()
def bench() -> None:
    """Measure speed, memory and behaviour under load.

    Every command prints the conditions of its figures: load, machine, versions and, in a clone, the
    commit. Let nothing else run on the machine. Compare ratios of figures from one run of a
    command, not rates from two: the speed of a machine changes.

    \b
    Example:  specpipe bench speculation model_configs/smollm2-135m_hybrid.yaml
    """


for command in (costs, serving, front, soak):
    bench.add_command(command)


@bench.command()
@configs_argument
@workspace_option
@prompts_option("Can be given several times; each file is measured separately.")
@count_option("--count", 20, "Prompts of each file, evenly spaced.")
@count_option("--max-tokens", 96, "Maximum number of output tokens of each answer.")
@precision_option
@json_option
@remote_options
def speculation(
    remote: "Remote | None",
    configs: tuple[Path, ...],
    workspace: Path,
    files: tuple[Path, ...],
    count: int,
    max_tokens: int,
    precisions: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare a run's server with and without speculation.

    Builds and serves each run, or calls the server at --url. Sends every prompt once with and once
    without speculation, in alternating order: greedily, in the chat template, one request at a
    time. Prints tokens per step (the target's own token included); tokens per second with and
    without speculation and the speed-up, as the median over the prompts with the 10th and 90th
    percentile; the speed-up of all prompts together; and the number of equal answers.

    \b
    Example:  specpipe bench speculation model_configs/smollm2-135m_hybrid.yaml --precision int8
    """
    from specpipe.bench.prompts import prompt_sets
    from specpipe.bench.speculation import bench_speculation, require_comparable
    from specpipe.cli.bench_tables import SPECULATION

    require_one(configs, remote, precisions)
    runs = load_runs(configs, workspace, precisions)
    sets = {}
    for run in runs:
        require_comparable(run.config, remote)
        sets[run.config.name] = prompt_sets(run.config, files, count)

    def measure(run: "Run", progress: "Progress") -> Sequence[Any]:
        chosen = sets[run.config.name]
        return bench_speculation(
            run, chosen, max_tokens, remote=remote, notify=say, progress=progress
        )

    text = (
        f"at most {counted(count, 'prompt')} per file, at most {max_tokens} tokens, greedy, "
        "one request at a time, with and without speculation in turn"
    )
    report(runs, text, SPECULATION, measure, as_json, remote)


@bench.command()
@configs_argument
@workspace_option
@count_option("--past", 256, "Cached tokens of each sequence before a step.", least=0)
@count_option("--rounds", 25, "How often every shape is measured; they take turns.")
@precision_option
@without_url("it times the engine in its own process, without a server")
@json_option
def engine(
    configs: tuple[Path, ...],
    workspace: Path,
    past: int,
    rounds: int,
    precisions: tuple[str, ...],
    as_json: bool,
) -> None:
    """Time the steps of a run's CPU engine.

    A step runs the same number of new rows for every sequence and computes the logits of all rows.
    Its time includes the engine's bookkeeping in Python. The columns are sequences x rows of each,
    in milliseconds, and prompt tokens per second in chunks of one sequence.

    \b
    Example:  specpipe bench engine model_configs/smollm2-135m_prompt-lookup.yaml
    """
    from specpipe.bench.engine import bench_engine, require_measurable
    from specpipe.cli.bench_tables import ENGINE

    runs = load_runs(configs, workspace, precisions)
    for run in runs:
        require_measurable(run.config, past)

    def measure(run: "Run", progress: "Progress") -> Sequence[Any]:
        return [bench_engine(run, past, rounds, notify=say, progress=progress)]

    text = f"{past} cached tokens per sequence, medians of {counted(rounds, 'round')}"
    report(runs, text, ENGINE, measure, as_json)


@bench.command()
@configs_argument
@workspace_option
@count_option("--rounds", 3, "How often both choices decode the prompts in turn.")
@without_url("it decodes in its own process, without a server")
@json_option
def tuning(configs: tuple[Path, ...], workspace: Path, rounds: int, as_json: bool) -> None:
    """Compare the choice of `tune` with that of brute force.

    Brute force decodes the held-out prompts of `validate:` with every setting that `tune`
    considers, and takes the fastest. Then both choices decode the same prompts in turn.

    \b
    Example:  specpipe bench tuning model_configs/smollm2-135m_medusa.yaml
    """
    from specpipe.bench.tuning import bench_tuning
    from specpipe.cli.bench_tables import TUNING

    def measure(run: "Run", progress: "Progress") -> Sequence[Any]:
        return [bench_tuning(run, rounds, notify=say, progress=progress)]

    text = f"the prompts of validate:, one at a time; {counted(rounds, 'round')} in turn"
    report(load_runs(configs, workspace), text, TUNING, measure, as_json)
