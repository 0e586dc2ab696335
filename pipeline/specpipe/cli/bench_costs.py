"""`specpipe bench costs`: the cost model of a running server, for `tune --cost-model`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from specpipe.cli.bench_options import count_option, streams_option
from specpipe.cli.options import json_option, require_writable
from specpipe.cli.output import end_json, say, suggest
from specpipe.cli.request_options import OpenClient, server_options

if TYPE_CHECKING:
    from specpipe.bench.costs import MeasuredCosts, Sizes


@click.command()
@server_options
@click.option(
    "--out",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=require_writable,
    help="Write the cost model to this JSON file.",
)
@streams_option(
    (2, 4, 8),
    "Streams that decode at the same time, in addition to one. Can be given several times; at "
    "most the sequences that the server runs in one batch.",
)
@count_option("--max-tokens", 48, "Maximum number of output tokens of each answer.", least=8)
@count_option("--rounds", 3, "How often every size is measured.")
@click.option(
    "--draft-model",
    is_flag=True,
    help="The server drafts with a draft model, which runs once for each draft token.",
)
@json_option
def costs(
    open_client: OpenClient,
    model: str | None,
    out: Path,
    streams: tuple[int, ...],
    max_tokens: int,
    rounds: int,
    draft_model: bool,
    as_json: bool,
) -> None:
    """Measure the cost model of a running server.

    Sends requests with known numbers of rows: streams that decode plainly at the same time, prompts
    of known length, and one stream with speculation. The server, on this machine or another, must
    do nothing else. Rows of several streams read several KV caches, so on long texts the figures
    are upper bounds for the rows of one draft.

    \b
    Example:  specpipe bench costs --url 10.0.0.7:8001 --out h100.json
    """
    from specpipe.bench.costs import Sizes, bench_costs
    from specpipe.core.artifacts import write_text

    sizes = Sizes((1, *streams), max_tokens=max_tokens, rounds=rounds)
    with open_client() as client:
        found = bench_costs(client, sizes, model=model, draft_model=draft_model, notify=say)
        url = client.url
    text = json.dumps(found.as_file(_conditions(url, sizes)), indent=2)
    write_text(out, f"{text}\n")
    click.echo(text if as_json else _table(found))
    end_json()
    say(f"wrote {out}")
    suggest(f"specpipe tune --config FILE --cost-model {out}", as_json)


def _conditions(url: str, sizes: "Sizes") -> dict[str, str]:
    from specpipe import __version__
    from specpipe.core.machine import describe_machine

    return {
        "server": url,
        "client": describe_machine(),
        "load": f"{sizes.max_tokens} output tokens, {sizes.rounds} rounds",
        "specpipe": __version__,
    }


def _table(found: "MeasuredCosts") -> str:
    """Return the measured times as a Markdown table, with their spread."""
    points = [("streams", n, times) for n, times in found.streams_ms.items()]
    points += [("prompt tokens", n, times) for n, times in found.rows_ms.items()]
    lines = ["| rows | measured with | ms of a step [10th, 90th percentile] |", "|---|---|---|"]
    lines += [
        f"| {n} | {n} {what} | {f.median:.2f} [{f.p10:.2f}, {f.p90:.2f}] |" for what, n, f in points
    ]
    parts = {"drafts of a step": found.heads_ms, "token of the draft model": found.draft_ms}
    return "\n".join([*lines, "", *(f"{name}: {ms:.2f} ms" for name, ms in parts.items() if ms)])
