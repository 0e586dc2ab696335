"""Real servers around tiny models, and what they should answer, computed in this process."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from specpipe.artifacts import Workspace
from specpipe.assembly import open_deployment
from specpipe.config import RunConfig, read_config
from specpipe.contracts import Sampling
from specpipe.repository.models.tokens import TextTokenizer, load_tokenizer
from specpipe.run import build
from specpipe.serve.address import free_address
from specpipe.serve.client import Client
from specpipe.serve.tritonserver import Endpoint, start_server
from specpipe.speculate.decode import Limits

ENGINE = {"backend": "openvino", "max_batch_size": 2, "max_input_len": 100, "max_seq_len": 4000}


class Served:
    """A running server and the means to know what it must answer."""

    def __init__(self, config: RunConfig, workspace: Workspace, endpoint: Endpoint) -> None:
        self.config, self.workspace, self.endpoint = config, workspace, endpoint
        self.url = endpoint.address.grpc
        self.client = Client(self.url, timeout_s=60)
        folder = workspace.repository / "preprocessing/1/tokenizer"
        self.tokenizer: TextTokenizer = load_tokenizer(folder)
        self._slot = open_deployment(config, {"target": workspace.engine("target")}).slot()

    def plain(self, text: str, max_tokens: int, **sampling: object) -> list[int]:
        """Return the tokens of plain decoding in this process."""
        options = Sampling(**{"end_id": self.tokenizer.end_id, **sampling})  # type: ignore[arg-type]
        prompt = self.tokenizer.encode(text, 1000)
        steps = self._slot.decode(prompt, options, Limits(max_tokens), num_draft_tokens=0)
        return [token for step in steps for token in step.tokens]


ServeTiny = Callable[..., "contextmanager[Served]"]


@pytest.fixture(scope="session")
def serve(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., object]:
    """Return a context manager that builds and serves the tiny model with the given sections."""

    @contextmanager
    def serving(**sections: object) -> Iterator[Served]:
        root = tmp_path_factory.mktemp("served")
        values = {
            "name": "tiny", "target": {"model": str(tiny)}, "engine": ENGINE,
            "speculation": {"method": "prompt_lookup", "num_draft_tokens": 3,
                            "min_matching_ngram_size": 1},
            "serving": {"max_queue_size": 3}, **sections,
        }  # fmt: skip
        path = root / "run.yaml"
        path.write_text(json.dumps(values))
        config = read_config(path)
        workspace = Workspace(root, config.name)
        build(config, workspace)
        with start_server(workspace.repository, free_address(), root / "server.log") as endpoint:
            yield Served(config, workspace, endpoint)

    return serving


@pytest.fixture(scope="session")
def server(serve: Callable[..., object]) -> Iterator[Served]:
    """Return the server that most tests share."""
    with serve() as served:  # type: ignore[attr-defined]
        yield served
