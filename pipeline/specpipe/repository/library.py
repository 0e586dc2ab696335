"""Copy the modules of specpipe that Triton's models import into a repository.

A repository for GPUs then runs in upstream's unchanged container, which has Python, numpy, the
tokenizers package, and jinja2, which torch and transformers need. It needs nothing else.
"""

import ast
import shutil
from functools import cache
from pathlib import Path

from specpipe.core.artifacts import digest_file, digest_json

LIBRARY = "preprocessing/1/lib"  # Triton does not search this folder for models
_PACKAGE = Path(__file__).parents[1]
_ROOTS = ("text", "preprocessing", "postprocessing")


def write_library(out: Path) -> None:
    """Copy the modules that the models import into `out`."""
    for file in library_files():
        place = out / "specpipe" / file
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_PACKAGE / file, place)


def library_digest() -> str:
    """Return a digest of the files that `write_library` copies."""
    return digest_json({str(file): digest_file(_PACKAGE / file) for file in library_files()})


@cache
def library_files() -> tuple[Path, ...]:
    """Return the files of specpipe that the models import, directly or not."""
    waiting = [f"specpipe.runtime.triton.{name}" for name in _ROOTS]
    found: set[Path] = set()
    while waiting:
        for file in _files(waiting.pop()):
            if file not in found:
                found.add(file)
                waiting += _imports(_PACKAGE / file)
    return tuple(sorted(found))


def _files(module: str) -> list[Path]:
    """Return a module's file and the `__init__` of every package above it."""
    parts = module.split(".")[1:]
    packages = [Path(*parts[:depth], "__init__.py") for depth in range(len(parts))]
    own = Path(*parts).with_suffix(".py") if parts else Path("__init__.py")
    if not (_PACKAGE / own).exists():
        own = Path(*parts, "__init__.py")
    return [*packages, own]


def _imports(file: Path) -> list[str]:
    """Return the modules of specpipe that a file imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("specpipe"):
            found.append(node.module)
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if _is_module(name)]
    return found


def _is_module(name: str) -> bool:
    path = _PACKAGE.joinpath(*name.split(".")[1:])
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()
