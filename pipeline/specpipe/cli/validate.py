"""`specpipe validate`: a server compared with transformers."""

import json
from pathlib import Path

import click

from specpipe.cli.options import (
    client_tls,
    client_tls_options,
    config_option,
    json_option,
    require_host_and_port,
    workspace_option,
)
from specpipe.cli.output import end_json, load, say, show_progress


@click.command()
@config_option
@workspace_option
@click.option(
    "--url",
    metavar="HOST:PORT",
    callback=require_host_and_port,
    help="gRPC endpoint of a running server. Default: start a temporary server.",
)
@client_tls_options
@json_option
def validate(
    config_path: Path,
    workspace: Path,
    url: str | None,
    tls_ca: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    as_json: bool,
) -> None:
    """Compare tokens and speed with transformers; write a report.

    Exits with 5 if a gate of the config is not met.

    \b
    Example:  specpipe validate --config model_configs/smollm2-135m_hybrid.yaml
    """
    from specpipe.validate.report import to_json, to_markdown
    from specpipe.validate.stage import validate_run
    from specpipe.validate.validate import require_passed

    tls = client_tls(tls_ca, tls_certificate, tls_key)
    if tls is not None and url is None:
        raise click.UsageError("--tls-ca needs --url")
    run = load(config_path, workspace)
    with show_progress("prompts") as progress:
        report = validate_run(run, url, tls=tls, notify=say, progress=progress)
    click.echo(json.dumps(to_json(report)) if as_json else to_markdown(report), nl=as_json)
    end_json()
    say(f"report: {run.workspace.reports / 'report.html'}")
    require_passed(report)
