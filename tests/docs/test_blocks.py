"""What pages show is right: languages, runs, Python, JSON, and every word of every command."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path

import click
import pytest
import yaml

from specpipe.cli import main
from specpipe.config.run_config import RunConfig, read_config
from tests.helpers.pages import BLOCKS, PAGES, SHELL, Block, commands, of_language, script_lines

LANGUAGES = (*SHELL, "yaml", "python", "json", "text", "toml", "ini", "promql", "diff")
# Programs that may stand in a page; what they are told is not checked.
PROGRAMS = """
    apt-get cat cd chromium cp curl docker echo eval export git helm jq kill kubectl mkdir mpirun
    nvidia-smi openssl podman pwd python python3 rm rsync scp sleep source ssh systemctl
    tar tritonserver wait
"""
SECTIONS = set(RunConfig.__dataclass_fields__)
RUN = {
    "name": "example",
    "target": {"model": "meta-llama/Llama-3.1-8B-Instruct"},
    "engine": {"backend": "llmapi", "gpu": "H100-SXM", "max_input_len": 1024, "max_seq_len": 4096},
}


def merge(base: Mapping[str, object], part: Mapping[str, object]) -> dict[str, object]:
    """Return `base` with the values of `part`, section by section."""
    merged = dict(base)
    for key, value in part.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = {**old, **value} if both else value  # type: ignore[dict-item]
    return merged


def of_page(page: Path) -> list[Block]:
    return [block for block in BLOCKS if block.page == page]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_block_names_its_language(page: Path) -> None:
    for block in of_page(page):
        assert block.language in LANGUAGES, (
            f"{block}: ```{block.language}: write one of {LANGUAGES}"
        )


@pytest.mark.parametrize("block", of_language("yaml"), ids=str)
def test_yaml_is_a_run_or_a_part_of_one(block: Block, tmp_path: Path) -> None:
    for number, document in enumerate(yaml.safe_load_all(block.text)):
        if not isinstance(document, dict) or not SECTIONS & document.keys():
            continue
        is_run = {"name", "target", "engine"} <= document.keys()
        path = tmp_path / f"{number}.yaml"
        path.write_text(block.text if is_run else json.dumps(merge(RUN, document), indent=1))
        read_config(path)


@pytest.mark.parametrize("block", of_language("python"), ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", of_language("json"), ids=str)
def test_json_is_valid(block: Block) -> None:
    try:
        json.loads(block.text)
    except json.JSONDecodeError:
        for line in filter(None, block.text.splitlines()):
            json.loads(line)


@pytest.mark.parametrize("block", of_language(*SHELL), ids=str)
def test_commands_exist_and_take_their_options(block: Block) -> None:
    for line in script_lines(block):
        for words in commands(line):
            check(words)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_in_prose_exist(page: Path) -> None:
    prose = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose):
        words = code.split()
        if words[0] == "specpipe" and len(words) > 1:
            check_names(words[1:])
        elif re.fullmatch(r"(\./)?scripts/[\w-]+", words[0]):
            named = [w for w in words[1:] if re.fullmatch(r"(--)?[a-z-]+", w)]
            known = Path(words[0]).read_text()  # a script's start is checked by its blocks
            check_script(words[0], [w for w in named if f'"{w}"' not in known])
        elif words[0] == "make" and len(words) == 2:
            check_make(words[1:])
        elif words[0] == "pip":
            check_pip(words[1:])


@pytest.mark.parametrize("page", sorted(Path("tests/golden").glob("help_*.txt")), ids=str)
def test_examples_of_the_help_take_their_options(page: Path) -> None:
    text = re.sub(r" *\\\n +", " ", page.read_text())  # examples of two lines
    for line in re.findall(r"^ +(?:Examples?: +|Start here: +)?(specpipe .+)$", text, re.MULTILINE):
        for words in commands(re.sub(r"\s{2,}#.*", "", line)):
            check(words)


def check_names(words: list[str]) -> None:
    """Check the commands and options of a line that may hold placeholders."""
    command: click.Command = main
    for word in words:
        if isinstance(command, click.Group) and re.fullmatch(r"[a-z-]+", word) and word[0] != "-":
            assert word in command.commands, f"specpipe has no command {word!r}: {words}"
            command = command.commands[word]
        elif match := re.fullmatch(r"\[?(--[a-z-]+).*", word):
            options = {o for p in command.params for o in p.opts} | {"--help", "--version"}
            assert match[1] in options, f"specpipe {command.name} has no option {match[1]}"


def check(words: list[str]) -> None:
    """Check one command of a page."""
    for word in words:
        if word.startswith("model_configs/"):
            assert list(Path().glob(word)), f"{word} does not exist"
    program, *arguments = words
    name = program.removeprefix("./").removeprefix(".venv/bin/")
    if name in {"python", "python3"} and arguments and "scripts/" in arguments[0]:
        name, *arguments = arguments
    if name == "specpipe":
        parse(main, arguments)
    elif name.startswith("scripts/"):
        check_script(name, arguments)
    elif name == "make":
        check_make(arguments)
    elif name == "pip":
        check_pip(arguments)
    else:
        assert name in PROGRAMS.split(), f"{name} is not a known program; add it to PROGRAMS"
    if name == "curl":
        check_curl(arguments)


def parse(command: click.Command, words: list[str]) -> None:
    """Parse a command line of specpipe without running it."""
    words = ["127.0.0.1:8001" if word == "HOST:PORT" else word for word in words]
    if isinstance(command, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"there is no command {words[0]!r}"
        return parse(command.commands[words[0]], words[1:])
    try:
        # A command remembers its help option, so it must see the settings of its group here too.
        root = click.Context(main, info_name="specpipe", **main.context_settings)
        command.make_context(command.name or "specpipe", words, parent=root).close()
    except click.exceptions.Exit as ended:
        assert ended.exit_code == 0
    except click.BadParameter as error:  # files of the reader need not exist here
        assert "does not exist" in error.message, error
    except click.exceptions.NoArgsIsHelpError:
        assert not words


def check_script(name: str, words: list[str]) -> None:
    path = Path(name)
    assert path.is_file(), f"{name} does not exist"
    assert path.stat().st_mode & 0o100, f"{name} is not executable"
    if path.name == "setup":
        assert words == ["vllm"] or set(words) <= extras(), (
            f"setup {words}: not extras of pyproject.toml"
        )
    text = usage(path) if words else ""
    for choices in re.findall(r"^usage: .*\{([\w,-]+)\}", text):
        text += "".join(usage(path, word) for word in words if word in choices.split(","))
    for option in [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", text), f"{name} has no {option}"


@cache
def usage(script: Path, *words: str) -> str:
    """Return the help of a script: what `--help` prints, or a shell script's own text."""
    text = script.read_text()
    if not text.startswith("#!/usr/bin/env python3"):
        return text
    command = [sys.executable, str(script), *words, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    missing = "ModuleNotFoundError" in done.stderr  # packages that the script's docstring names
    assert done.returncode == 0 or missing, f"{script} --help: {done.stderr[-500:]}"
    return text if missing else done.stdout


def check_make(targets: list[str]) -> None:
    known = re.findall(r"^([a-z-]+):", Path("Makefile").read_text(), re.MULTILINE)
    names = [word for word in targets if not word.startswith("-") and "=" not in word]
    assert set(names) <= set(known), f"make {names}: the targets are {known}"


def check_pip(words: list[str]) -> None:
    """Check extras; the package is not on an index, where a stranger could register its name."""
    text = " ".join(words)
    assert "specpipe-trtllm" not in text, f"pip {text}: install from the clone, '.[extra]'"
    for names in re.findall(r"\.\[([\w,-]+)\]", text):
        assert set(names.split(",")) <= extras(), f"pip {text}: the extras are {extras()}"


@cache
def extras() -> set[str]:
    table = Path("pyproject.toml").read_text().split("[project.optional-dependencies]\n")[1]
    return set(re.findall(r"^(\w+) = \[", table.split("\n[")[0], re.MULTILINE))


def check_curl(words: list[str]) -> None:
    assert any(re.match(r"https?://|127\.0\.0\.1|localhost", word) for word in words), words
    for flag, value in pairwise(words):
        if flag in {"-d", "--data", "--json"} and not value.startswith("@"):
            json.loads(value)


@pytest.mark.parametrize(
    "line",
    [
        "specpipe biuld --config run.yaml",
        "specpipe build --confg run.yaml",
        "specpipe build --config model_configs/absent.yaml",
        "specpipe plan",
        "specpipe serve --config run.yaml --grpc-port many",
        "cd x && specpipe train medusas --config run.yaml",
        "scripts/absent",
        ".venv/bin/python scripts/bench-bls --tokenz 5",
        "specpipe bench soak run.yaml --secondz 5",
        "scripts/setup cpu gpu",
        "make everything",
        "pip install -e '.[quantise]'",
        "pip install 'specpipe-trtllm[quantize]'",
        "crul http://127.0.0.1:8000/v2/health/ready",
        "curl http://127.0.0.1:8000/v2/models/ensemble/generate -d '{\"text_input\": }'",
    ],
)
def test_a_command_that_is_wrong_is_found(line: str) -> None:
    with pytest.raises((AssertionError, click.UsageError, ValueError)):
        for words in commands(line):
            check(words)
