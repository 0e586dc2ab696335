"""Real servers with tiny models, and the expected answers, computed in this process."""

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from specpipe.cli import main
from specpipe.config.run_config import RunConfig, read_config
from specpipe.core.artifacts import Workspace
from specpipe.core.contracts import Sampling
from specpipe.core.processes import last_lines
from specpipe.run.run import Run
from specpipe.run.stages import build
from specpipe.runtime.assembly import open_runtime
from specpipe.runtime.tokens import TextTokenizer, load_tokenizer
from specpipe.serve.address import free_address
from specpipe.serve.client import Client
from specpipe.serve.tritonserver import RunningServer, start_server
from specpipe.speculate.decode import Limits

ENGINE = {"backend": "openvino", "max_batch_size": 2, "max_input_len": 100, "max_seq_len": 4000}


class Served:
    """A running server, and functions that compute its expected answers."""

    def __init__(self, config: RunConfig, workspace: Workspace, endpoint: RunningServer) -> None:
        self.config, self.workspace, self.endpoint = config, workspace, endpoint
        self.url = endpoint.address.grpc
        self.client = Client(self.url, timeout_s=60)
        folder = workspace.repository / "preprocessing/1/tokenizer"
        self.tokenizer: TextTokenizer = load_tokenizer(folder)
        self._deployment = open_runtime(config, {"target": workspace.engine("target")})

    def plain(self, text: str, max_tokens: int, **sampling: object) -> list[int]:
        """Return the tokens of plain decoding in this process."""
        ends = self.ends(sampling.pop("end_id", None))
        options = Sampling(end_ids=ends, **sampling)  # type: ignore[arg-type]
        prompt = self.tokenizer.encode(text, 1000)
        steps = self._deployment.decode(prompt, options, Limits(max_tokens), 0)
        return [token for step in steps for token in step.tokens]

    def plain_text(self, text: str, max_tokens: int, **sampling: object) -> str:
        """Return the text of plain decoding; an end token has none."""
        tokens = self.plain(text, max_tokens, **sampling)
        ended = tokens[-1] in self.ends(sampling.get("end_id"))
        return self.tokenizer.decode(tokens[:-1] if ended else tokens)

    def ends(self, end_id: object) -> tuple[int, ...]:
        """Return the end tokens of a request with this `end_id`."""
        if end_id is None:
            return self.tokenizer.end_ids
        return (end_id,) if isinstance(end_id, int) and end_id >= 0 else ()


def cli_generate(server: Served, *words: str, config: bool = False) -> Result:
    """Run `specpipe generate` against a server, with or without the run's config."""
    run = ("--config", server.config.path, "--workspace", str(server.workspace.root))
    place = run if config else ()
    return CliRunner().invoke(main, ["generate", "--url", server.url, *place, *words])


@dataclass
class Servers:
    """The running servers of this session, and reports on those that died in a test."""

    running: list[RunningServer] = field(default_factory=list)
    obituaries: list[str] = field(default_factory=list)

    @contextmanager
    def watch(self, endpoint: RunningServer) -> Iterator[None]:
        self.running.append(endpoint)
        try:
            yield
        finally:
            self.running.remove(endpoint)
            self.obituaries += self.obituary(endpoint)

    def obituary(self, endpoint: RunningServer) -> list[str]:
        failure = endpoint.failure()
        return [] if failure is None else ["\n".join([failure, *last_lines(endpoint.log, 40)])]


SERVERS = pytest.StashKey[Servers]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SERVERS] = Servers()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport]:
    """Add the report of a dead server to the failing test."""
    report = yield
    servers = item.config.stash[SERVERS]
    if report.failed:
        dead = [text for endpoint in servers.running for text in servers.obituary(endpoint)]
        report.sections += [("tritonserver", text) for text in [*servers.obituaries, *dead]]
    if report.when == "teardown":
        servers.obituaries.clear()
    return report


Package = Callable[..., tuple[RunConfig, Workspace]]


@pytest.fixture(scope="session")
def package(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Return a function that builds and packages the tiny model with the given sections."""

    def packaged(**sections: object) -> tuple[RunConfig, Workspace]:
        root = tmp_path_factory.mktemp("served")
        values = {
            "name": "tiny", "target": {"model": str(tiny)}, "engine": ENGINE,
            "speculation": {"method": "prompt_lookup", "num_draft_tokens": 3,
                            "min_matching_ngram_size": 1, "draft_length": "fixed"},
            "serving": {"max_queue_size": 3}, **sections,
        }  # fmt: skip
        path = root / "run.yaml"
        path.write_text(json.dumps(values))
        config = read_config(path)
        workspace = Workspace(root, config.name)
        build(Run(config, workspace))
        return config, workspace

    return packaged


@pytest.fixture(scope="session")
def serve(package: Package, pytestconfig: pytest.Config) -> Callable[..., object]:
    """Return a context manager that builds and serves the tiny model with the given sections."""

    @contextmanager
    def serving(**sections: object) -> Iterator[Served]:
        config, workspace = package(**sections)
        log = workspace.root / "server.log"
        with start_server(workspace.repository, free_address(), log) as endpoint:
            with pytestconfig.stash[SERVERS].watch(endpoint):
                yield Served(config, workspace, endpoint)

    return serving


@pytest.fixture(scope="session")
def server(serve: Callable[..., object]) -> Iterator[Served]:
    """Return the server that most tests share."""
    with serve() as served:  # type: ignore[attr-defined]
        yield served
