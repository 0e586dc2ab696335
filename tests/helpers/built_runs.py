"""Runs that are built from the values of their YAML file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.run.run import Run
from specpipe.run.stages import build


def built_run(values: Mapping[str, Any], root: Path) -> tuple[Path, Workspace]:
    """Write `root`/run.yaml and build it in `root`; return the file and the workspace."""
    path = root / "run.yaml"
    path.write_text(json.dumps(values))
    config = read_config(path)
    workspace = Workspace(root, config.name)
    build(Run(config, workspace))
    return path, workspace
