"""Text files are read and written as UTF-8, whatever the locale: Triton's models run in ASCII."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3] / "pipeline/specpipe"
FILES = sorted(SOURCE.rglob("*.py"))


def _is_text(call: ast.Call, name: str) -> bool:
    """Tell whether a call opens a file for text: by its name, or `open` without "b" in its mode."""
    if name in ("read_text", "write_text"):
        return isinstance(call.func, ast.Attribute)
    modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
    return name == "open" and any(isinstance(m, str) and "b" not in m for m in modes)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_text_files_have_an_encoding(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if _is_text(node, name):
                keys = {keyword.arg for keyword in node.keywords}
                assert "encoding" in keys, f"{path.name}:{node.lineno} lacks an encoding"
