"""The pages that `scripts/write-docs` writes: up to date, complete, and short enough to read."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from specpipe.checkpoint.families import FAMILIES
from specpipe.config.run_config import RunConfig
from specpipe.engine.gpus import GPUS

DOCS = Path(__file__).parents[2] / "docs"
WORDS_PER_CELL = 30


def test_the_pages_are_what_the_code_generates() -> None:
    script = [sys.executable, "scripts/write-docs", "--check"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr}run `scripts/write-docs` and commit its pages"


def keys_of(record: Any) -> Iterator[str]:
    """Yield the names of all keys of a record and of the records in it."""
    hints = get_type_hints(record)
    for field in dataclasses.fields(record):
        if field.metadata.get("key") is False:
            continue
        kind = hints[field.name]
        inner = [k for k in (kind, *get_args(kind)) if dataclasses.is_dataclass(k)]
        if not inner:
            yield field.name
        for one in inner:
            yield from keys_of(one)


def test_every_key_of_the_records_has_a_row() -> None:
    rows = [row for row in rows_of("configuration.md") if row[0].startswith("`")]
    names = {row[0].strip("`").rsplit(".", 1)[-1] for row in rows}
    assert set(keys_of(RunConfig)) - {"method"} <= names


@pytest.mark.parametrize("page", ["configuration.md", "support.md"])
def test_no_cell_is_longer_than_a_glance(page: str) -> None:
    long = [cell for row in rows_of(page) for cell in row if len(cell.split()) > WORDS_PER_CELL]
    assert not long


def test_the_support_matrix_has_every_family_and_gpu() -> None:
    text = (DOCS / "support.md").read_text(encoding="utf-8")
    missing = [name for name in (*FAMILIES, *GPUS) if f"`{name}`" not in text]
    assert not missing
    families = (DOCS / "families.md").read_text(encoding="utf-8")
    assert not [name for name in FAMILIES if f"`{name}`" not in families]


def rows_of(page: str) -> list[list[str]]:
    """Return the cells of every row of every table of a page."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in lines
        if line.startswith("|") and not line.startswith("|---")
    ]
