"""The dependency rule of ARCHITECTURE.md, enforced on the import statements."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "pipeline/specpipe"

# From the bottom up; a module imports from its own group and from groups above it in this list.
LAYERS = [
    {"errors", "cpu"},
    {"model"},
    {"contracts", "endpoint"},
    {"building"},
    {"divide", "yaml_nodes", "records", "trees", "methods", "tree_options", "recipe", "config"},
    {"artifacts", "publishing", "digests", "processes"},
    {"checkpoint", "engine", "speculate", "plan"},
    {"runtime"},
    {"assembly"},
    {"repository"},
    {"deploy"},
    {"serve"},
    {"html", "prompts"},
    {"validate", "tune", "train"},
    {
        "locate",
        "planning",
        "work",
        "run",
        "tuning",
        "validating",
        "deploying",
        "inventory",
        "doctor",
    },
    {"present", "present_plan"},
    {"cli"},
]
SIBLINGS_APART = [{"checkpoint", "engine", "speculate", "plan"}, {"validate", "train"}]

# Heavy packages and the only places that may import them.
HEAVY = {
    "torch": ("checkpoint/", "train/", "validate/reference.py"),
    "transformers": ("checkpoint/", "train/", "validate/reference.py"),
    "openvino": ("engine/openvino/",),
    "tensorrt_llm": ("engine/tensorrt/",),
    "tritonclient": ("repository/render.py", "serve/"),
    "click": ("cli/",),
    "triton_python_backend_utils": ("repository/models/",),
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
        for apart in SIBLINGS_APART:
            if {ours, theirs} <= apart:
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
