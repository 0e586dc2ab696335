"""The rules of the tests themselves: no fixed waits, no private names, helpers in one folder."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(path for path in TESTS.rglob("*.py") if path != Path(__file__))
SHARED = TESTS / "helpers"
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))

# Calls that only let time pass: `sleep`, and the wait for an event that nobody can set.
WAIT = re.compile(r"\bsleep\(|import sleep\b|Event\(\)\.wait\([^)]")


def is_private(name: str) -> bool:
    return re.fullmatch(r"_[A-Za-z]\w*(?<!__)", name) is not None


def private_names(tree: ast.AST) -> Iterator[str]:
    """Yield the private names of other modules and objects: imported, read, or patched."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "getattr")):
            names = [str(part.value) for part in node.args[:2] if isinstance(part, ast.Constant)]
            yield from (name for name in names if is_private(name.rpartition(".")[2]))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def parsed(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"))


@every_file
def test_a_test_waits_for_a_condition_and_not_for_an_amount_of_time(path: Path) -> None:
    """Only the helper that waits for conditions lets time pass."""
    assert path == SHARED / "waiting.py" or WAIT.findall(path.read_text(encoding="utf-8")) == []


@every_file
def test_a_test_uses_no_private_name(path: Path) -> None:
    """Mutants are mistakes in private functions, and name them."""
    assert path == SHARED / "mutants.py" or list(private_names(parsed(path))) == []


@every_file
def test_what_tests_share_is_in_the_folder_of_helpers(path: Path) -> None:
    shared = [name for name in imports(parsed(path)) if name.startswith("tests.")]
    assert [name for name in shared if not name.startswith("tests.helpers.")] == []


def test_helpers_have_no_tests() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in FILES if SHARED in path.parents}
    assert texts and not [path for path, text in texts.items() if "def test_" in text]


@pytest.mark.parametrize(
    ("text", "is_wait"),
    [
        ("time.sleep(1)", True),
        ("from time import sleep", True),
        ("threading.Event().wait(1)", True),
        ("done.wait(1)", False),
        ("threading.Event().wait()", False),
    ],
)
def test_a_wait_is_found(text: str, is_wait: bool) -> None:
    assert bool(WAIT.search(text)) == is_wait


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from a.b import _c, d", ["_c"]),
        ("client._connection.lost", ["client._connection"]),
        ("self._window.levels", []),
        ("self._window._levels", ["self._window._levels"]),
        ("patch.setattr(module, '_name', 1)", ["_name"]),
        ("patch.setattr('a.b._name', 1)", ["a.b._name"]),
        ("value.__class__", []),
    ],
)
def test_a_private_name_is_found(text: str, found: list[str]) -> None:
    assert list(private_names(ast.parse(text))) == found
