"""`specpipe doctor`: what this machine lacks for a run."""

import json
import sys
from pathlib import Path

import click

from specpipe.cli.options import json_option, optional_config_option, workspace_option
from specpipe.cli.output import load, plain


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

    run = load(config_path, workspace) if config_path else None
    findings = examine(run, workspace)
    as_text = json.dumps(plain(findings), indent=2) if as_json else findings_text(findings)
    click.echo(as_text)
    if any(finding.problem for finding in findings):
        sys.exit(3)
