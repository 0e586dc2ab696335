"""The words of `WORDS` do not occur in what people read: pages, help, configs, comments, messages.

CONTRIBUTING.md has the same list, as a table; a test compares the two.
"""

import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import pytest

TABLE = Path("CONTRIBUTING.md")
_END = r"(?=\s*[.,;:!?)\]])"


@dataclass(frozen=True)
class Word:
    """A habit to avoid: how the table names it, what finds it, what to write instead."""

    name: str
    pattern: str
    instead: str
    readers_only: bool = False  # code may use the word in comments and docstrings


WORDS = (
    Word("to be had", r"\bto be had\b", "available"),
    Word("goes on with", r"\b(?:go|goes|gone|going|went) on with\b", "resumes, continues"),
    Word("so many", r"\bso many\b", "the number, or N"),
    Word("held against", r"\bheld against\b", "compared with"),
    Word("has its say", r"\bha(?:s|ve) (?:its|their) say\b", "name what it does"),
    Word("beside", r"\bbeside\b", "next to, in addition to"),
    Word("alone", r"\balone\b", "only, by itself"),
    Word("in hand", r"\bin hand\b", "in flight"),
    Word("of its, of theirs", rf"\bof (?:its|theirs){_END}", "name the thing"),
    Word("is fresh", r"\b(?:is|are|be|not) fresh\b", "is up to date"),
    Word("Say", r"(?m:^[\x20\t#>*|\"-]*Say )", "another verb: print, show, return"),
    Word("says", r"\bsays\b", "shows, states, reports, contains"),
    Word(
        "client leaves, reader left",
        r"\b(?:client|reader)s? (?:that )?(?:leaves|left)\b",
        "disconnects, disconnected",
    ),
    Word("for the time", rf"\bfor the time{_END}", "for now, or how long"),
    Word(
        "guess, guesser",
        r"(?<![/\w.{])(?:guess|guesses|guesser|guessers|guessed|guessing)(?![\w/]|\.\w)",
        "draft token, drafter, draft",
        readers_only=True,
    ),
)


@dataclass(frozen=True)
class Passage:
    """A piece of prose, the line where it begins, and whether it is code's own (no reader's)."""

    line: int
    text: str
    internal: bool = False


def whole(path: Path) -> Iterator[Passage]:
    """Yield a file of prose; of the table of words only what is not quoted."""
    lines = path.read_text().splitlines()
    quoted = {f"| {word.name} | {word.instead} |" for word in WORDS} if path == TABLE else set()
    yield Passage(1, "\n".join("" if line in quoted else line for line in lines))


def python_prose(path: Path) -> Iterator[Passage]:
    """Yield the comments and strings of a Python file; neighbours are one passage."""
    with tokenize.open(path) as file:
        tokens = [t for t in tokenize.generate_tokens(file.readline) if t.type != tokenize.NL]
    middle = getattr(tokenize, "FSTRING_MIDDLE", None)

    def kind(token: tokenize.TokenInfo) -> str:
        if token.type == tokenize.COMMENT:
            return "comment"
        return "string" if token.type in (tokenize.STRING, middle) else ""

    previous = tokenize.NEWLINE
    for name, group in groupby(tokens, kind):
        found = list(group)
        docstring = name == "string" and previous in _BEFORE_A_DOCSTRING
        previous = found[-1].type if name != "comment" else previous
        if not name:
            continue
        text = _commented(found) if name == "comment" else _concatenated(found)
        yield Passage(found[0].start[0], text, internal=name == "comment" or docstring)


_BEFORE_A_DOCSTRING = (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)


def _commented(tokens: list[tokenize.TokenInfo]) -> str:
    return "\n".join(token.string.lstrip("#") for token in tokens)


def _concatenated(tokens: list[tokenize.TokenInfo]) -> str:
    """Join the parts of a string without the quotes between them, each on its own line."""
    text = tokens[0].string
    for before, token in pairwise(tokens):
        lines = "\n" * (token.start[0] - before.end[0])
        text = text.rstrip("\"'") + lines + re.sub(r"^[rbfRBF]*[\"']+", "", token.string)
    return text


def passages(path: Path) -> Iterator[Passage]:
    """Yield the prose of any file."""
    is_python = path.suffix == ".py" or path.read_bytes().startswith(b"#!/usr/bin/env python3")
    return python_prose(path) if is_python else whole(path)


def offences(path: Path) -> Iterator[str]:
    """Yield one sentence for every word that should be another."""
    for passage in passages(path):
        text = passage.text
        for word in WORDS:
            if word.readers_only and (passage.internal or _is_a_name(text)):
                continue
            for match in re.finditer(word.pattern.replace(" ", r"\s+(?:#\s*)?"), text):
                line = passage.line + text[: match.start()].count("\n")
                found = " ".join(match.group().split()).strip('"#>*|- ')
                yield f"{path}:{line}: '{found}': write {word.instead}"


def _is_a_name(text: str) -> bool:
    return re.search(r"\s", text.strip()) is None


def files() -> list[Path]:
    """Return every file whose words this test reads."""
    folders = ("docs", "model_configs", "pipeline/specpipe", "scripts", "tests/golden")
    found = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file()]
    written = [p for p in found if p.suffix in {"", ".md", ".py", ".yaml", ".txt", ".css"}]
    ours = [p for p in written if "golden" not in p.parts or p.name.startswith(_GOLDEN)]
    return sorted(p for p in (*Path().glob("*.md"), *ours) if "__pycache__" not in p.parts)


_GOLDEN = ("help_", "refusals")


@pytest.mark.parametrize("path", files(), ids=str)
def test_prose_uses_the_words_of_the_field(path: Path) -> None:
    found = list(offences(path))
    assert not found, "\n".join([*found, 'CONTRIBUTING.md, "How we write", lists these words'])


def test_contributing_lists_exactly_these_words() -> None:
    lines = TABLE.read_text().split("| avoid | write |\n|---|---|\n")[1].split("\n\n")[0]
    assert lines.splitlines() == [f"| {word.name} | {word.instead} |" for word in WORDS]


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("# The release that is to be\n# had for CPUs.\n", 1, "to be had"),
        ('"""One line.\n\n    Say what is there."""\n', 3, "Say"),
        ('x = f("no " "guess was right")\n', 1, "guess"),
        ('x = ("the config " \n "says so")\n', 2, "says"),
        ('"""One file,\nand so\nmany."""\n', 2, "so many"),
    ],
)
def test_an_odd_word_is_found_with_its_line(
    tmp_path: Path, text: str, line: int, found: str
) -> None:
    file = tmp_path / "module.py"
    file.write_text(text)
    first = next(offences(file))
    assert first.startswith(f"{file}:{line}: ") and found in first


@pytest.mark.parametrize(
    "text",
    [
        'x = "guesser"\n',
        "# the guess of a head\n",
        'def f():\n    """Return the guess."""\n',
        "guess = fresh(alone, beside)\n",
        '"""The sides besides, standalone."""\n',
    ],
)
def test_names_in_code_are_left_as_they_are(tmp_path: Path, text: str) -> None:
    file = tmp_path / "module.py"
    file.write_text(text)
    assert not list(offences(file))
