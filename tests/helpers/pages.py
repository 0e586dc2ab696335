"""The code blocks of the pages, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGES = sorted((*Path().glob("*.md"), *Path("docs").rglob("*.md")))
SHELL = ("bash", "console")

_FENCE = re.compile(r"^(?P<indent> *)(?P<marks>`{3,}|~{3,}) *(?P<info>.*)$")
_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
_OPERATORS = {"&&", "||", "|", ";", "&", ";;", "(", ")"}
_REDIRECTION = re.compile(r"^\d*[<>]")
_ASSIGNMENT = re.compile(r"^\w+=")
_WRAPPERS = {"sudo", "exec", "nohup", "time", "env"}


@dataclass(frozen=True)
class Block:
    """One fenced block of a page; `line` is that of its first fence."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page in order."""
    lines = page.read_text().splitlines()
    opened: tuple[int, str, str, int] | None = None
    body: list[str] = []
    for number, line in enumerate(lines, 1):
        match = _FENCE.match(line)
        if opened is None and match:
            opened = number, match["marks"], match["info"], len(match["indent"])
            body = []
        elif opened and match and match["marks"].startswith(opened[1]) and not match["info"]:
            language = (opened[2].split() or [""])[0]
            yield Block(page, opened[0], language, "\n".join(body) + "\n")
            opened = None
        elif opened:
            body.append(line[opened[3] :] if line[: opened[3]].isspace() else line)
    if opened:
        raise ValueError(f"{page}:{opened[0]}: the block is not closed")


BLOCKS = [block for page in PAGES for block in read_blocks(page)]


def of_language(*languages: str) -> list[Block]:
    """Return the blocks of these languages."""
    return [block for block in BLOCKS if block.language in languages]


def script_lines(block: Block) -> list[str]:
    """Return the complete command lines of a shell block: joined, without prompts and output."""
    lines = block.text.splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    found: list[str] = []
    pending, end = "", ""
    for line in lines:
        if end:
            end = "" if line.strip() == end else end
            continue
        pending = f"{pending}\n{line}" if pending else line
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        if is_open_quote(pending):
            continue
        heredoc = _HEREDOC.search(pending)
        end = heredoc[2] if heredoc else ""
        found.append(pending)
        pending = ""
    if pending.strip():
        raise ValueError(f"{block}: a command does not end: {pending!r}")
    return [line for line in found if line.strip() and not line.lstrip().startswith("#")]


def is_open_quote(text: str) -> bool:
    """Whether a quoted string of this text continues on the next line."""
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return True
    return False


def commands(line: str) -> Iterator[list[str]]:
    """Yield the commands of a line as words, those in `$(...)` too, without redirections."""
    for inner in re.findall(r"\$\(([^()]*)\)", line):
        yield from commands(inner)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()")
    lexer.whitespace_split = True
    words: list[str] = []
    for token in [*lexer, ";"]:
        if token in _OPERATORS:
            yield from filter(None, [_bare(words)])
            words = []
        else:
            words.append(token)


def _bare(words: list[str]) -> list[str]:
    while words and (_ASSIGNMENT.match(words[0]) or words[0] in _WRAPPERS):
        words = words[1:]
    kept: list[str] = []
    skip = False
    for word in words:
        if _REDIRECTION.match(word):
            skip = re.fullmatch(r"\d*[<>]+", word) is not None
            continue
        kept += [] if skip else [word]
        skip = False
    return kept
