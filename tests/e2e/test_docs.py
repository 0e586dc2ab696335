"""The Python and curl examples of the pages, and the README's own run, against real servers."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.run.run import Run
from specpipe.run.stages import build
from specpipe.serve.address import Address, free_address
from specpipe.serve.description import fetch_endpoint
from specpipe.serve.tritonserver import start_server
from tests.helpers.fronts import fronting
from tests.helpers.pages import SHELL, Block, commands, of_language, script_lines

pytestmark = [pytest.mark.e2e, pytest.mark.model]

README = Path("README.md")
CURL = [
    pytest.param(words, id=f"{block}-{number}")
    for block in of_language(*SHELL)
    for line in script_lines(block)
    for number, words in enumerate(commands(line))
    if words[0] == "curl"
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """Return where a server of the quickstart's run listens."""
    root = tmp_path_factory.mktemp("docs")
    config = read_config(Path("model_configs/smollm2-135m_hybrid.yaml"))
    workspace = Workspace(root, config.name)
    build(Run(config, workspace))
    with start_server(workspace.repository, free_address(), root / "server.log") as endpoint:
        yield endpoint.address


@pytest.fixture(scope="module")
def front(address: Address) -> Iterator[str]:
    """Return where an OpenAI front of that server listens."""
    name = "smollm2-135m_hybrid"
    with fronting(address.grpc, lambda: fetch_endpoint(address.grpc), model=name) as place:
        yield f"{place.host}:{place.port}"


def at(text: str, address: Address, front: str = "127.0.0.1:9000") -> str:
    """Replace the default ports of a page by those of a server and its front."""
    ports = ((8000, address.http), (8001, address.grpc), (8002, address.metrics), (9000, front))
    for port, place in ports:
        for host in ("127.0.0.1", "localhost"):
            text = text.replace(f"{host}:{port}", place)
    return text


@pytest.mark.parametrize("block", of_language("python"), ids=str)
def test_python_of_a_page_runs_and_prints(
    block: Block, address: Address, front: str, tmp_path: Path
) -> None:
    (tmp_path / "model_configs").symlink_to(Path("model_configs").absolute())
    command = [sys.executable, "-c", at(block.text, address, front)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    if "print(" in block.text:
        assert done.stdout.splitlines()[0].strip(), "the first line is empty"


@pytest.mark.parametrize("words", CURL)
def test_curl_of_a_page_is_answered(words: list[str], address: Address) -> None:
    command = ["curl", "--silent", "--show-error", "--fail-with-body", "--noproxy", "*"]
    command += [at(word, address) for word in words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wants_text = any("/generate" in word for word in words)
    assert '"text_output":' in done.stdout if wants_text else not done.stderr


@dataclass(frozen=True)
class Reader:
    """Somebody who types the commands of a page into a shell in a folder of their own."""

    folder: Path
    address: Address

    def command(self, line: str) -> tuple[list[str], dict[str, str]]:
        words = next(commands(at(line, self.address)))
        if words[1] == "serve":
            for flag in ("http", "grpc", "metrics"):
                words += [f"--{flag}-port", str(getattr(self.address, f"{flag}_port"))]
        if words[1] == "generate":
            words += ["--url", self.address.grpc, "--max-tokens", "24"]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return words, {**os.environ, "PATH": path}

    def type(self, line: str) -> str:
        words, environment = self.command(line)
        done = subprocess.run(
            words, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, line: str) -> "subprocess.Popen[str]":
        words, environment = self.command(line)
        process = subprocess.Popen(
            words, cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline().startswith("{"), "serve prints one JSON line when ready"
        return process


def the_readmes_run(folder: Path, model: Path) -> list[str]:
    """Write the README's YAML file, for a model and few prompts; return the commands after it."""
    blocks = of_language("yaml", *SHELL)
    place = next(n for n, b in enumerate(blocks) if b.page == README and b.language == "yaml")
    run = yaml.safe_load(blocks[place].text)
    run["target"]["model"] = str(model)
    run["validate"] |= {"num_prompts": 2, "max_tokens": 8}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return script_lines(blocks[place + 1])


def test_the_commands_of_the_readme_work_in_order(tiny: Path, tmp_path: Path) -> None:
    lines = the_readmes_run(tmp_path, tiny)
    names = [next(commands(line))[1] for line in lines]
    assert names == ["plan", "build", "serve", "generate", "validate"]
    reader = Reader(tmp_path, free_address())
    plan, make, serve, generate, validate = lines
    reader.type(plan)
    reader.type(make)
    server = reader.start(serve)
    try:
        assert reader.type(generate).strip()
        reader.type(validate)
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
    assert server.returncode == 0
    assert (tmp_path / "reports/my-model/report.html").is_file()
