"""`specpipe validate`: a server compared with transformers."""

import json
from pathlib import Path

import click

from specpipe.cli.options import (
    client_key_option,
    client_tls,
    client_tls_options,
    config_option,
    json_option,
    read_key,
    require_address,
    workspace_option,
)
from specpipe.cli.output import end_json, load, say, show_progress


@click.command()
@config_option
@workspace_option
@click.option(
    "--url",
    metavar="ADDRESS",
    callback=require_address,
    help="Running server: HOST:PORT of gRPC, or http://HOST:PORT of an OpenAI API. Default: start "
    "a temporary server.",
)
@click.option(
    "--full",
    is_flag=True,
    help="Run every scenario: load, samples, long prompts, acceptance, accuracy, tasks.",
)
@client_tls_options
@client_key_option
@json_option
def validate(
    config_path: Path,
    workspace: Path,
    url: str | None,
    full: bool,
    tls_ca: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    api_key_file: Path | None,
    as_json: bool,
) -> None:
    """Compare tokens and speed with transformers; write a report.

    Exits with 5 if a gate of the config is not met.

    \b
    Example:  specpipe validate --config model_configs/smollm2-135m_hybrid.yaml
    """
    from specpipe.validate.markdown import to_markdown
    from specpipe.validate.report import to_json
    from specpipe.validate.stage import validate_run
    from specpipe.validate.validate import require_passed

    tls, key = client_tls(tls_ca, tls_certificate, tls_key), read_key(api_key_file)
    for option, value in (("--tls-ca", tls), ("--api-key-file", key)):
        if value is not None and url is None:
            raise click.UsageError(f"{option} needs --url")
    run = load(config_path, workspace)
    with show_progress("prompts") as progress:
        report = validate_run(run, url, tls=tls, key=key, full=full, notify=say, progress=progress)
    click.echo(json.dumps(to_json(report)) if as_json else to_markdown(report), nl=as_json)
    end_json()
    say(f"report: {run.workspace.reports / 'report.html'}")
    require_passed(report)
