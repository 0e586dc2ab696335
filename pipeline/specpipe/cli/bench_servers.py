"""The commands of `specpipe bench` that measure servers: serving, front and soak."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specpipe.cli.bench_options import (
    KINDS,
    count_option,
    precision_option,
    remote_options,
    require_one,
    streams_option,
    without_url,
)
from specpipe.cli.bench_report import load_runs, report
from specpipe.cli.options import configs_argument, json_option, workspace_option
from specpipe.cli.output import counted, say
from specpipe.core.errors import GateFailed

if TYPE_CHECKING:
    from specpipe.bench.served import Progress, Remote
    from specpipe.run.run import Run


@click.command()
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
@remote_options
def serving(
    remote: "Remote | None",
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
    tokens per second of each load: without speculation / with it. With --url, only the loads of
    --clients are measured.

    \b
    Example:  specpipe bench serving model_configs/smollm2-135m_prompt-lookup.yaml
    """
    from specpipe.bench.serving import bench_running, bench_serving
    from specpipe.cli.bench_tables import SERVING

    require_one(configs, remote)
    if remote is not None and not clients:
        raise click.UsageError(
            "--url needs --clients: a server that runs already is neither started nor measured in "
            "memory"
        )

    def measure(run: "Run", progress: "Progress") -> Sequence[Any]:
        if remote is not None:
            return [bench_running(run, remote, clients, notify=say)]
        return [bench_serving(run, starts, clients, notify=say, progress=progress)]

    text = f"{counted(starts, 'start')}, then an answer in every slot; median"
    if remote is not None:
        text = f"closed loops of {', '.join(map(str, clients))} clients"
    report(load_runs(configs, workspace), text, SERVING, measure, as_json, remote)


@click.command()
@configs_argument
@workspace_option
@streams_option((1, 8), "Answers that are decoded at the same time. Can be given several times.")
@count_option("--rounds", 20, "How often each load is measured on both sides.")
@count_option("--max-tokens", 64, "Output tokens of each answer.")
@precision_option
@without_url("it starts the server and the front, and measures both sides of the same server")
@json_option
def front(
    configs: tuple[Path, ...],
    workspace: Path,
    streams: tuple[int, ...],
    rounds: int,
    max_tokens: int,
    precisions: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure what the OpenAI front costs, compared with gRPC.

    Builds and serves each run, and starts `specpipe openai` before its server. Sends the same
    requests over gRPC and over HTTP with server-sent events, in alternating order: greedily,
    streamed, in the chat template, N at the same time. Prints tokens per second of both sides as
    the median over the rounds with the 10th and 90th percentile; their ratio, round by round, as
    the median with its 95 % interval; the CPU time of the front's process per token; how much more
    CPU time a token over HTTP takes in the client; and the number of equal answers. Server, front
    and client share this machine. A run with fewer slots than streams gets more.

    \b
    Example:  specpipe bench front model_configs/smollm2-135m_hybrid.yaml --precision int8
    """
    from specpipe.bench.front import bench_front, require_triton_run
    from specpipe.bench.prompts import prompt_sets
    from specpipe.cli.bench_tables import FRONT

    runs = load_runs(configs, workspace, precisions)
    sets = {}
    for run in runs:
        require_triton_run(run)
        sets[run.config.name] = prompt_sets(run.config, (), max(streams) * rounds)[-1]

    def measure(run: "Run", progress: "Progress") -> Sequence[Any]:
        return bench_front(
            run, sets[run.config.name], streams, rounds=rounds, max_tokens=max_tokens, notify=say,
            progress=progress,
        )  # fmt: skip

    text = (
        f"{', '.join(map(str, streams))} streams, {max_tokens} tokens per answer, greedy; "
        f"{counted(rounds, 'round')}, gRPC and front in turn; all on this machine"
    )
    report(runs, text, FRONT, measure, as_json)


@click.command()
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
@without_url("it watches the processes of the server, so it starts one itself")
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
    rows = report(load_runs(configs, workspace), text, SOAK, measure, as_json)
    if not as_json:
        click.echo("\n" + "\n\n".join(soak_text(row) for row in rows))
    if failed := [row.run for row in rows if not row.passed]:
        raise GateFailed(f"the soak test failed: {', '.join(failed)}")
