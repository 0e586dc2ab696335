"""The served quickstart, as foreign clients reach it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.run.run import Run
from specpipe.run.stages import build
from specpipe.serve.address import free_address
from tests.helpers.clients import QUICKSTART, Front
from tests.helpers.servers import ready, serving


@pytest.fixture(scope="session")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Build the quickstart's run and serve it with the OpenAI front, as a user would."""
    folder = tmp_path_factory.mktemp("served")
    config = read_config(QUICKSTART)
    workspace = Workspace(folder, config.name)
    build(Run(config, workspace))
    port = str(free_address().grpc_port)
    with serving(workspace.repository, folder, "--openai-port", port) as process:
        url = ready(process)["openai"].removesuffix("/v1")
        yield Front(url, config.name, Path(config.target.model).expanduser())
