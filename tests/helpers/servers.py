"""Running servers of tiny models: what they must answer, their metrics, and `specpipe serve`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from specpipe.cli import main
from specpipe.core.contracts import Sampling
from specpipe.run.run import Run
from specpipe.runtime.assembly import open_runtime
from specpipe.runtime.engine_client import ping_engine
from specpipe.runtime.exchange import Heartbeat
from specpipe.runtime.tokens import TextTokenizer, load_tokenizer
from specpipe.serve.address import free_address
from specpipe.serve.client import Client
from specpipe.serve.tritonserver import RunningServer
from specpipe.serve.watch import read_metrics
from specpipe.speculate.decode import Limits
from tests.helpers.waiting import until

PROMPT = "The quick brown fox jumps over the lazy dog. The quick brown"
TEXT_MODELS = pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
IN_FLIGHT = "specpipe_requests_in_flight"


class Served:
    """A running server, and functions that compute its expected answers."""

    def __init__(self, run: Run, endpoint: RunningServer) -> None:
        self.config, self.workspace, self.endpoint = run.config, run.workspace, endpoint
        self.url = endpoint.address.grpc
        self.client = Client(self.url, timeout_s=60)
        folder = self.workspace.repository / "preprocessing/1/tokenizer"
        self.tokenizer: TextTokenizer = load_tokenizer(folder)
        self._deployment = open_runtime(run.config, {"target": run.workspace.engine("target")})

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

    def metrics(self, name: str) -> dict[str, float]:
        """Return the values of one metric by the model that they are of."""
        lines = read_metrics(self.endpoint.address) or []
        found = [line for line in lines if line.startswith(name + "{")]
        return {line.split('model="')[1].split('"')[0]: float(line.split()[-1]) for line in found}

    def await_in_flight(self, model: str, count: int) -> None:
        """Wait until so many requests of a text model are in flight."""
        until(
            lambda: self.metrics(IN_FLIGHT).get(model) == count,
            failure=lambda: f"{self.metrics(IN_FLIGHT)} are in flight, not {count} of {model}",
        )

    def heartbeat(self) -> Heartbeat:
        """Ask the engine how many requests it decodes and how many wait."""
        socket = self.endpoint.engine_socket
        assert socket is not None
        return ping_engine(socket, timeout_s=30)

    def await_idle(self) -> None:
        """Wait until the engine has no request, and has exported what it counted."""
        until(lambda: self.heartbeat().active == 0, timeout_s=60)


Package = Callable[..., Run]
Serve = Callable[..., AbstractContextManager[Served]]


def asked(**more: object) -> dict[str, object]:
    """Return the tensors of a text request."""
    return {"text_input": PROMPT, "max_tokens": 40, "exclude_input_in_output": True, **more}


def expected(server: Served, max_tokens: int = 40, **sampling: object) -> str:
    """Return the text that answers `asked()`, by plain decoding in this process."""
    return server.plain_text(PROMPT, max_tokens, **sampling)


def cli_generate(server: Served, *words: str, config: bool = False) -> Result:
    """Run `specpipe generate` against a server, with or without the run's config."""
    run = ("--config", server.config.path, "--workspace", str(server.workspace.root))
    place = run if config else ()
    return CliRunner().invoke(main, ["generate", "--url", server.url, *place, *words])


def port_options(host: str = "127.0.0.1") -> list[str]:
    """Return options with free ports for `specpipe serve`."""
    address = free_address(host)
    ports = {"grpc": address.grpc_port, "http": address.http_port, "metrics": address.metrics_port}
    return [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]


@contextmanager
def serving(
    repository: Path, tmp_path: Path, *options: str, host: str = "127.0.0.1"
) -> Iterator["subprocess.Popen[str]"]:
    """Run `specpipe serve` on a repository, to the end of the block at most.

    Its temporary files and its stderr are in `tmp_path`.
    """
    command = [
        *(sys.executable, "-m", "specpipe", "serve", "--repository", str(repository)),
        *("--host", host, *port_options(host), *options),
    ]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.terminate()


def ready(process: "subprocess.Popen[str]") -> dict:
    """Wait until the server is ready; return what `specpipe serve` prints then."""
    assert process.stdout
    found: dict = json.loads(process.stdout.readline())
    return found
