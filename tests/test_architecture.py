"""The dependency rule of ARCHITECTURE.md, enforced on the import statements."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from specpipe.config.backends import BACKENDS

SOURCE = Path(__file__).parents[1] / "pipeline/specpipe"


def _layers() -> list[set[str]]:
    """Return the layers that ARCHITECTURE.md names, from the bottom up."""
    page = (Path(__file__).parents[1] / "ARCHITECTURE.md").read_text(encoding="utf-8")
    chain = page.split("## Layers")[1].split("```text\n")[1].split("```")[0]
    return [set(line.split(" | ")) for line in reversed(chain.splitlines())]


# A module imports from its own group and from groups before it in this list.
LAYERS = _layers()

# Heavy packages and the only places that may import them.
HEAVY = {
    "torch": ("checkpoint/", "train/", "validate/reference.py"),
    "transformers": ("checkpoint/", "train/", "validate/reference.py"),
    "openvino": ("engine/openvino/",),
    "tensorrt_llm": ("engine/tensorrt/",),
    "tritonclient": ("repository/render.py", "serve/"),
    "click": ("cli/",),
    "llguidance": ("runtime/grammars.py",),
    "xgrammar": ("runtime/triton/engine_guides.py",),
    "starlette": ("openai/",),
    "uvicorn": ("openai/",),
    "triton_python_backend_utils": ("runtime/triton/",),
}

FILES = sorted(path for path in SOURCE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def group(path: Path) -> str:
    """Return the top-level module or package that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def level(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down_the_layers(path: Path) -> None:
    ours = group(path)
    if ours in ("__init__", "__main__"):
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "specpipe" or len(parts) == 1:
            continue
        theirs = parts[1]
        assert level(theirs) <= level(ours), f"{path} imports {name}, which lies above it"
        if level(theirs) == level(ours):
            assert ours == theirs, f"{path} imports its sibling {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_heavy_packages_stay_in_their_folders(path: Path) -> None:
    place = str(path.relative_to(SOURCE))
    for name in imports(path):
        allowed = HEAVY.get(name.split(".")[0])
        if allowed is not None:
            assert place.startswith(allowed), f"{place} imports {name}"


def test_every_module_has_a_layer() -> None:
    for path in FILES:
        if group(path) not in ("__init__", "__main__"):
            level(group(path))


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "__init__.py"], ids=str)
def test_every_package_states_what_does_not_belong_there(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert "\n\nNot here: " in text, f"add a sentence `Not here: ...` to the docstring of {path}"


def branches(path: Path) -> list[int]:
    """Return the lines in which a file compares with a backend's name, or has a table of them."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            sides = [key for key in node.keys if key is not None]
        else:
            sides = [node.value] if isinstance(node, ast.MatchValue) else []
        parts = [part for side in sides for part in ast.walk(side)]
        if any(isinstance(part, ast.Constant) and part.value in BACKENDS for part in parts):
            found.append(getattr(node, "lineno", 0))
    return found


@pytest.mark.parametrize(
    "text",
    [
        'engine.backend == "vllm"',
        'engine.backend not in ("llmapi", other)',
        'hints = {"tensorrt": 1}',
        'match name:\n    case "openvino": pass',
    ],
)
def test_a_branch_on_the_name_of_a_backend_is_found(text: str, tmp_path: Path) -> None:
    file = tmp_path / "planted.py"
    file.write_text(f'EngineOptions("vllm")\n{text}\n')
    assert len(branches(file)) == 1 and branches(file)[0] >= 2


def test_only_backends_and_their_table_know_the_names_of_backends() -> None:
    ours = [SOURCE / "config/backends.py", *(SOURCE / "engine").rglob("*.py")]
    found = {str(path): lines for path in FILES if path not in ours and (lines := branches(path))}
    assert not found, "ask `EngineOptions.traits` or the `Backend` for a fact"


def test_a_public_class_name_is_defined_once() -> None:
    defined = defaultdict(list)
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                defined[node.name].append(str(path.relative_to(SOURCE)))
    del defined["TritonPythonModel"]  # Triton looks for this name in every model
    assert not {name: paths for name, paths in defined.items() if len(paths) > 1}
