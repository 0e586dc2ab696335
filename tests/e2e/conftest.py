"""Fixtures: real servers with tiny models, and reports on those that died in a test."""

import json
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import StageFailed
from specpipe.core.processes import last_lines
from specpipe.run.run import Run
from specpipe.run.stages import build
from specpipe.serve.address import free_address
from specpipe.serve.tritonserver import RunningServer, start_server
from tests.helpers.servers import Package, Serve, Served

ENGINE = {"backend": "openvino", "max_batch_size": 2, "max_input_len": 100, "max_seq_len": 4000}


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


@pytest.fixture(scope="session")
def package(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Return a function that builds and packages the tiny model with the given sections, once."""
    made: dict[str, Run] = {}

    def build_run(sections: dict[str, object]) -> Run:
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
        run = Run(config, Workspace(root, config.name))
        build(run)
        return run

    def packaged(**sections: object) -> Run:
        key = json.dumps(sections, sort_keys=True)
        if key not in made:
            made[key] = build_run(sections)
        return made[key]

    return packaged


@pytest.fixture(scope="session")
def serve(
    package: Package, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Serve:
    """Return a context manager that builds and serves the tiny model with the given sections."""

    @contextmanager
    def serving(**sections: object) -> Iterator[Served]:
        run = package(**sections)
        log = tmp_path_factory.mktemp("log") / "server.log"
        starting = start_server(run.workspace.repository, free_address(), log)
        with ExitStack() as stack:
            try:
                endpoint = stack.enter_context(starting)
            except StageFailed as error:
                raise StageFailed("\n".join([str(error), *last_lines(log, 40)])) from error
            stack.enter_context(pytestconfig.stash[SERVERS].watch(endpoint))
            yield Served(run, endpoint)

    return serving


@pytest.fixture(scope="session")
def run(package: Package) -> Run:
    """Return the packaged run of the server that most tests share."""
    return package()


@pytest.fixture(scope="session")
def server(serve: Serve) -> Iterator[Served]:
    """Return the server that most tests share."""
    with serve() as served:
        yield served


@pytest.fixture(scope="session")
def bls_server(serve: Serve, tiny_draft: Path) -> Iterator[Served]:
    """Return a server with Triton's loop over a target and a draft that is mostly wrong.

    It has two processes of each text model.
    """
    draft = {"method": "draft_model", "draft": {"model": str(tiny_draft)}, "num_draft_tokens": 3}
    with serve(speculation=draft, serving={"loop": "bls", "max_queue_size": 3}) as served:
        yield served
