"""The scripts, as far as they go without a server: what they import is there."""

import ast
import importlib
from pathlib import Path

import pytest

PYTHON = [
    path
    for path in sorted(Path("scripts").iterdir())
    if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env python3")
]


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.name)
def test_what_a_script_imports_of_specpipe_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("specpipe"):
            module = importlib.import_module(str(node.module))
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{node.module} has no {missing}"
