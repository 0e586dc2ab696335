"""The scripts, as far as they go without a server: their imports exist, and so does their help."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = [
    path
    for path in sorted(Path("scripts").iterdir())
    if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env python3")
]


def test_no_file_tells_to_install_specpipe_from_an_index() -> None:
    """specpipe is on no package index, where somebody else could register its name."""
    files = [p for p in Path().iterdir() if p.suffix in (".md", ".toml")]
    for folder in ("docs", "pipeline", "scripts", "tests/unit", "model_configs", "triton_repo"):
        files += [p for p in Path(folder).rglob("*") if p.is_file() and p.suffix != ".pyc"]
    command = re.compile(r"\b(?:pip|pipx|uv)\b[^\n]*\binstall\b[^\n]*['\"\s]specpipe-trtllm")
    command_to_find = "pip install 'specpipe-" + "trtllm[cpu]'"
    assert command.search(command_to_find)
    named = [p for p in files if b"specpipe-trtllm" in p.read_bytes()]
    found = [str(p) for p in named if command.search(p.read_text(errors="ignore"))]
    assert not found, f"write pip install -e '.[extra]', in a clone: {found}"


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.name)
def test_what_a_script_imports_of_specpipe_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("specpipe"):
            module = importlib.import_module(str(node.module))
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{node.module} has no {missing}"


@pytest.mark.parametrize("name", ["check-deploy", "fetch-model", "fetch-prompts"])
def test_help_is_printed_where_no_package_is_installed(name: str) -> None:
    command = [sys.executable, "-I", "-S", f"scripts/{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    source = ast.parse(Path(f"scripts/{name}").read_text())
    assert (ast.get_docstring(source) or "").splitlines()[-1] in done.stdout
