"""Check a server, an artifact or a machine: `validate inspect doctor`."""

import json
import sys
from pathlib import Path

import click

from specpipe.cli.options import (
    client_tls,
    client_tls_options,
    config_option,
    json_option,
    optional_config_option,
    require_host_and_port,
    workspace_option,
)
from specpipe.cli.output import counted, end_json, load, plain, say, show_progress


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
    config, place = load(config_path, workspace)
    with show_progress("prompts") as progress:
        report = validate_run(config, place, url, tls=tls, notify=say, progress=progress)
    click.echo(json.dumps(to_json(report)) if as_json else to_markdown(report), nl=as_json)
    end_json()
    say(f"report: {place.reports / 'report.html'}")
    require_passed(report)


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--tensors", is_flag=True, help="Also read every value, not only the headers.")
@json_option
def inspect(folder: Path, tensors: bool, as_json: bool) -> None:
    """Describe a checkpoint or engine and list its defects.

    DIR is a TensorRT-LLM checkpoint of any converter, a TensorRT-LLM engine or an OpenVINO engine.
    Exits with 5 if there are defects.

    \b
    Example:  specpipe inspect engines/smollm2-135m_hybrid/checkpoints/target
    """
    from specpipe.checkpoint.inspection.describe import inspection_text
    from specpipe.checkpoint.inspection.inspect import inspect_folder
    from specpipe.core.errors import GateFailed

    if tensors:
        with show_progress("bytes") as progress:
            found = inspect_folder(folder, progress)
    else:
        found = inspect_folder(folder)
    click.echo(json.dumps(plain(found), indent=2) if as_json else inspection_text(found))
    end_json()
    if found.defects:
        raise GateFailed(f"{folder}: {counted(len(found.defects), 'defect')}")


@click.command()
@optional_config_option("Also check the requirements of this run.")
@workspace_option
@json_option
def doctor(config_path: Path | None, workspace: Path, as_json: bool) -> None:
    """Check this machine and list what the run needs but lacks.

    \b
    Example:  specpipe doctor --config model_configs/smollm2-135m_hybrid.yaml
    """
    from specpipe.cli.present import findings_text
    from specpipe.doctor.checks import examine

    config = load(config_path, workspace)[0] if config_path else None
    findings = examine(config, workspace)
    as_text = json.dumps(plain(findings), indent=2) if as_json else findings_text(findings)
    click.echo(as_text)
    if any(finding.problem for finding in findings):
        sys.exit(3)
