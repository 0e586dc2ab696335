"""`specpipe bench`: figures of runs on this machine, as Markdown tables or JSON."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specpipe.cli.options import Command, configs_argument, json_option, workspace_option
from specpipe.cli.output import counted, end_json, load, say, show_progress
from specpipe.core.errors import GateFailed

if TYPE_CHECKING:
    from specpipe.bench.served import Progress
    from specpipe.cli.bench_tables import Table
    from specpipe.run.run import Run

    Measure = Callable[[Run, Progress], Sequence[Any]]

# The tables of `bench/`, which are not imported for `--help`; a test compares them.
PRECISIONS = ("float32", "bfloat16", "int8", "int8-float32", "int4")
KINDS = (
    "whole", "streamed", "long", "refused", "garbage", "half-open", "http-disconnect",
    "grpc-cancel",
)  # fmt: skip

precision_option = click.option(
    "--precision",
    "precisions",
    metavar="NAME",
    multiple=True,
    type=click.Choice(PRECISIONS),
    help=f"Measure this precision instead of the run's: {', '.join(PRECISIONS)}. Can be given "
    "several times.",
)


def count_option(
    flag: str, default: int, text: str, least: int = 1
) -> Callable[[Command], Command]:
    """Return an option for a number that is at least `least`."""
    return click.option(
        flag,
        metavar="N",
        default=default,
        show_default=True,
        type=click.IntRange(min=least),
        help=text,
    )


@click.group()
def bench() -> None:
    """Measure speed, memory and behaviour under load.

    Every command prints the conditions of its figures: load, machine, versions and, in a clone, the
    commit. Let nothing else run on the machine. Compare ratios of figures from one run of a
    command, not rates from two: the speed of a machine changes.

    \b
    Example:  specpipe bench speculation model_configs/smollm2-135m_hybrid.yaml
    """


@bench.command()
@configs_argument
@workspace_option
@click.option(
    "--prompts",
    "files",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help='JSON lines with a "prompt". Default: validate.prompts of the run, else built-in ones. '
    "Can be given several times; each file is measured separately.",
)
@count_option("--count", 20, "Prompts of each file, evenly spaced.")
@count_option("--max-tokens", 96, "Maximum number of output tokens of each answer.")
@precision_option
@json_option
def speculation(
    configs: tuple[Path, ...],
    workspace: Path,
    files: tuple[Path, ...],
    count: int,
    max_tokens: int,
    precisions: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare a run's server with and without speculation.

    Builds and serves each run. Sends every prompt once with and once without speculation, in
    alternating order: greedily, in the chat template, one request at a time. Prints tokens per step
    (the target's own token included); tokens per second with and without speculation and the
    speed-up, as the median over the prompts with the 10th and 90th percentile; the speed-up of all
    prompts together; and the number of equal answers.

    \b
    Example:  specpipe bench speculation model_configs/smollm2-135m_hybrid.yaml --precision int8
    """
    from specpipe.bench.prompts import prompt_sets
    from specpipe.bench.speculation import bench_speculation, require_comparable
    from specpipe.cli.bench_tables import SPECULATION

    runs = _load_runs(configs, workspace, precisions)
    sets = {}
    for run in runs:
        require_comparable(run.config)
        sets[run.config.name] = prompt_sets(run.config, files, count)

    def measure(run: "Run", progress: "Progress") -> Sequence[Any]:
        chosen = sets[run.config.name]
        return bench_speculation(run, chosen, max_tokens, notify=say, progress=progress)

    text = (
        f"at most {counted(count, 'prompt')} per file, at most {max_tokens} tokens, greedy, "
        "one request at a time, with and without speculation in turn"
    )
    _report(runs, text, SPECULATION, measure, as_json)


@bench.command()
@configs_argument
@workspace_option
@count_option("--starts", 3, "How often the server is started.")
@click.option(
    "--clients",
    metavar="N",
    multiple=True,
    type=click.IntRange(min=1),
    help="Also measure a closed loop of N clients, with and without speculation. Can be given "
    "several times.",
)
@json_option
def serving(
    configs: tuple[Path, ...],
    workspace: Path,
    starts: int,
    clients: tuple[int, ...],
    as_json: bool,
) -> None:
    """Measure the start of a run's server, and its memory.

    Memory is the proportional set size of tritonserver and its models after answers in every slot,
    in MB of 10^6 bytes. It is compared with the weights on disk and with the KV cache of all
    sequences at their longest. GPU memory is not measured. With --clients, the last column has the
    tokens per second of each load: without speculation / with it.

    \b
    Example:  specpipe bench serving model_configs/smollm2-135m_prompt-lookup.yaml
    """
    from specpipe.bench.serving import bench_serving
    from specpipe.cli.bench_tables import SERVING

    def measure(run: "Run", progress: "Progress") -> Sequence[Any]:
        return [bench_serving(run, starts, clients, notify=say, progress=progress)]

    text = f"{counted(starts, 'start')}, then an answer in every slot; median"
    _report(_load_runs(configs, workspace), text, SERVING, measure, as_json)


@bench.command()
@configs_argument
@workspace_option
@count_option("--past", 256, "Cached tokens of each sequence before a step.", least=0)
@count_option("--rounds", 25, "How often every shape is measured; they take turns.")
@precision_option
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

    runs = _load_runs(configs, workspace, precisions)
    for run in runs:
        require_measurable(run.config, past)

    def measure(run: "Run", progress: "Progress") -> Sequence[Any]:
        return [bench_engine(run, past, rounds, notify=say, progress=progress)]

    text = f"{past} cached tokens per sequence, medians of {counted(rounds, 'round')}"
    _report(runs, text, ENGINE, measure, as_json)


@bench.command()
@configs_argument
@workspace_option
@count_option("--rounds", 3, "How often both choices decode the prompts in turn.")
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
    _report(_load_runs(configs, workspace), text, TUNING, measure, as_json)


@bench.command()
@configs_argument
@workspace_option
@count_option("--seconds", 180, "How long clients send requests, after a warm-up of a tenth.")
@count_option("--requests", 0, "Send this number of requests instead; 0: no number.", least=0)
@count_option("--clients", 6, "Clients that send one request at a time.")
@click.option(
    "--kind",
    "kinds",
    metavar="KIND",
    multiple=True,
    type=click.Choice(KINDS),
    help=f"Send requests of this kind only: {', '.join(KINDS)}. Can be given several times. "
    "Default: all but grpc-cancel, which can crash or hang Triton 2.51 itself.",
)
@json_option
def soak(
    configs: tuple[Path, ...],
    workspace: Path,
    seconds: int,
    requests: int,
    clients: int,
    kinds: tuple[str, ...],
    as_json: bool,
) -> None:
    """Load a run's server with clients of every kind.

    Clients request whole answers, streams, long prompts and requests that must be refused. Some
    disconnect from an HTTP stream, some send malformed requests, some send half a request to the
    engine's socket. Every answer is compared with the answer of the idle server, so use a run in
    float32 or with engine.batch_invariant: in other precisions answers may depend on the batch.
    Prints the outcomes, and memory, threads and open files of tritonserver and of each model's
    process. Exits with 5 if an answer was wrong or the server stopped.

    \b
    Example:  specpipe bench soak model_configs/smollm2-135m_prompt-lookup.yaml --seconds 60
    """
    from specpipe.bench.soak import Extent, Load, bench_soak
    from specpipe.cli.bench_tables import SOAK, soak_text

    sent = Load(Extent(seconds, requests), clients, kinds)

    def measure(run: "Run", progress: "Progress") -> Sequence[Any]:
        return [bench_soak(run, sent, notify=say, progress=progress)]

    extent = counted(requests, "request") if requests else f"{seconds} s"
    text = f"{extent}, {counted(clients, 'client')}, kinds: {', '.join(kinds) or 'all'}"
    rows = _report(_load_runs(configs, workspace), text, SOAK, measure, as_json)
    if not as_json:
        click.echo("\n" + "\n\n".join(soak_text(row) for row in rows))
    if failed := [row.run for row in rows if not row.passed]:
        raise GateFailed(f"the soak test failed: {', '.join(failed)}")


def _load_runs(
    configs: Sequence[Path], workspace: Path, precisions: Sequence[str] = ()
) -> "list[Run]":
    """Return every run in every precision."""
    from specpipe.bench.precision import with_precision

    found = []
    for run in [load(path, workspace) for path in configs]:
        found += [with_precision(run, name) for name in precisions] or [run]
    return found


def _report(
    runs: "Sequence[Run]", load_text: str, table: "Table", measure: "Measure", as_json: bool
) -> list[Any]:
    """Measure run by run and print; a table grows as the runs end. Returns all records."""
    from specpipe.bench.conditions import conditions
    from specpipe.cli.bench_tables import bench_json, conditions_text

    found = conditions([run.config for run in runs], load_text)
    rows: list[Any] = []
    if not as_json:
        click.echo(f"{conditions_text(found)}\n\n{table.head()}")
    for run in runs:
        with show_progress(run.config.name) as progress:
            measured = measure(run, progress)
        rows += measured
        if not as_json:
            click.echo("\n".join(table.body(row) for row in measured))
    if as_json:
        click.echo(json.dumps(bench_json(found, rows), indent=2))
    end_json()
    return rows
