"""`specpipe validate` on real servers: every way to serve passes, every planted fault is caught."""

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from specpipe.cli import main
from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.run.run import Run
from specpipe.run.stages import build, status
from specpipe.serve.address import free_address
from specpipe.serve.client import Client, Options
from specpipe.serve.tritonserver import start_server
from tests.helpers.servers import Served

pytestmark = pytest.mark.e2e

PROMPTS = ("The quick brown fox jumps over the lazy dog. The quick", "one two one two one two one")
LOOKUP = {
    "method": "prompt_lookup",
    "num_draft_tokens": 3,
    "min_matching_ngram_size": 1,
    "draft_length": "fixed",  # the tiny model's steps are so short that drafts do not pay
}
SMALL = {  # loads of the scenarios
    "concurrency": {"clients": [1, 2], "rates": [20], "requests": 2, "max_tokens": 8},
    "sampled": {"seeds": 8, "num_prompts": 1, "max_tokens": 3},
    "long": {"input_tokens": [120], "max_tokens": 16, "num_prompts": 2},
}
GATES = {"exact_match": 1.0, "early_stops": 0.0, "greedy_agreement": 1.0, "perplexity": 10_000.0}
WriteRun = Callable[..., Path]


def write(root: Path, tiny: Path, **sections: object) -> Path:
    """Write and build a run of the tiny model in `root`; return its file."""
    prompts = root / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": text}) for text in PROMPTS))
    judged = {"prompts": str(prompts), "max_tokens": 24, "gates": GATES, **SMALL}
    values = {
        "name": "tiny", "target": {"model": str(tiny)},
        "engine": {"backend": "openvino", "max_input_len": 200, "max_seq_len": 300},
        "speculation": LOOKUP, **sections, "validate": judged | sections.get("validate", {}),
    }  # fmt: skip
    path = root / "run.yaml"
    path.write_text(json.dumps(values, indent=1))
    build(Run(read_config(path), Workspace(root, "tiny")))
    return path


@pytest.fixture
def write_run(tmp_path: Path, tiny: Path) -> WriteRun:
    """Return a function that writes and builds a run with the given sections in `tmp_path`."""
    return partial(write, tmp_path, tiny)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """Return a run with prompt lookup, which several tests validate one after the other."""
    return write(tmp_path_factory.mktemp("run"), tiny)


def validate(path: Path, *more: str) -> Result:
    arguments = ["validate", "--config", str(path), "--workspace", str(path.parent), *more]
    return CliRunner().invoke(main, arguments)


def report(path: Path) -> dict:
    return json.loads((path.parent / "reports/tiny/report.json").read_text())


def median(path: Path, metric: str, arm: str) -> float:
    return report(path)["metrics"][metric]["arms"][arm]["median"]


def test_the_engines_loop_passes_every_scenario_with_every_figure(run: Path) -> None:
    found = validate(run, "--full")
    assert found.exit_code == 0, found.output
    for arm in ("plain", "speculative"):
        for metric in ("exact_match", "greedy_agreement"):
            assert median(run, metric, arm) == 1
    assert median(run, "perplexity", "plain") == pytest.approx(
        median(run, "perplexity", "reference"), rel=1e-3
    )
    assert median(run, "acceptance_length", "speculative") >= 1
    names = [check["name"] for check in report(run)["checks"]]
    assert any(name.startswith("plain decoding does not speculate") for name in names)
    assert any(name.startswith("ensemble gives") for name in names)
    assert report(run)["acceptance_histogram"]
    assert all(trial["text"] for trial in report(run)["trials"])
    scenarios = {s["scenario"]: s for s in report(run)["scenarios"]}
    assert scenarios.pop("tasks")["left_out"] and not any(s["left_out"] for s in scenarios.values())
    assert median(run, "defects", "speculative") == 0
    assert median(run, "kl_mean", "speculative") < 1e-4
    loads = {(p["load"], p["arm"]) for p in scenarios["concurrency"]["points"]}
    assert len(loads) == 6 and ("20 requests/s", "speculative") in loads
    assert scenarios["acceptance"]["depths"]["all"]


def test_a_draft_and_a_target_in_triton_pass_and_speculate(
    write_run: WriteRun, tiny_draft: Path
) -> None:
    """The arm of speculation goes through the loop over both, not to the target by itself."""
    draft = {"method": "draft_model", "draft": {"model": str(tiny_draft)}, "num_draft_tokens": 3}
    path = write_run(speculation=draft, serving={"loop": "bls"})
    found = validate(path)
    assert found.exit_code == 0, found.output
    drafted = {t["arm"]: t["draft_tokens"] for t in report(path)["trials"]}
    assert drafted["speculative"] > 0 and drafted["plain"] == 0


def test_a_server_that_answers_in_one_piece_passes(write_run: WriteRun) -> None:
    path = write_run(serving={"decoupled": False})
    found = validate(path)
    assert found.exit_code == 0, found.output


def test_an_engine_that_always_speculates_has_no_plain_arm_and_says_so(
    write_run: WriteRun,
) -> None:
    """The emulator of the C++ models speculates in every request, like these models."""
    path = write_run(serving={"loop": "bls"})
    found = validate(path)
    assert found.exit_code == 0, found.output
    assert {t["arm"] for t in report(path)["trials"]} == {"reference", "speculative"}
    assert "no request can turn the speculation" in report(path)["left_out"]["speedup_over_plain"]
    assert "plain" not in report(path)["metrics"]["speedup_over_reference"]["arms"]
    assert "plain decoding was not measured" in report(path)["conditions"]["order"]


@pytest.mark.parametrize("loop", ["engine", pytest.param("bls", marks=pytest.mark.exhaustive)])
def test_a_plain_engine_of_its_own_is_built_and_compared_with(
    loop: str, write_run: WriteRun
) -> None:
    path = write_run(serving={"loop": loop}, validate={"baseline": "build"})
    place = Workspace(path.parent, "tiny")
    results = status(Run(read_config(path), place))
    assert [r.path.name for r in results if r.stage == "package"] == ["tiny", "tiny.baseline"]
    assert all(result.fresh for result in results)
    plan = CliRunner().invoke(
        main, ["plan", "--config", str(path), "--workspace", str(path.parent)]
    )
    assert "baseline" in plan.output
    found = validate(path)
    assert found.exit_code == 0, found.output
    assert median(path, "exact_match", "plain") == 1
    assert median(path, "speedup_over_plain", "speculative") > 0
    assert not any(t["draft_tokens"] for t in report(path)["trials"] if t["arm"] == "plain")
    assert "the server of the plain engine" in report(path)["conditions"]["order"]
    shutil.rmtree(place.root / "triton_repo/tiny.baseline")
    assert validate(path).exit_code == 2


@contextmanager
def served(run: Path, folder: Path, spoil: Callable[[Path], None]) -> Iterator[str]:
    """Serve a copy of a run's repository, in which `spoil` plants a fault; yields its URL."""
    copy = folder / "spoiled"
    shutil.copytree(run.parent / "triton_repo/tiny", copy)
    spoil(copy)
    with start_server(copy, free_address(), folder / "spoiled.log") as server:
        yield server.address.grpc


def test_another_model_behind_the_endpoint_is_caught(run: Path, tmp_path: Path) -> None:
    """The weights are shuffled in the served copy; the engine of the run is whole."""

    def shuffle(repository: Path) -> None:
        weights = max((repository / "tensorrt_llm/1/engines/target").iterdir(),
                      key=lambda file: file.stat().st_size)  # fmt: skip
        stored = np.fromfile(weights, np.uint8)
        raw = stored[: len(stored) // 4 * 4].view(np.float32)
        (places,) = np.nonzero((abs(raw) > 1e-4) & (abs(raw) < 1))  # the rest is sizes and axes
        raw[places] = np.random.default_rng(0).permutation(raw[places])
        weights.unlink()
        stored.tofile(weights)

    with served(run, tmp_path, shuffle) as url:
        found = validate(run, "--url", url)
    assert found.exit_code == 5, found.output
    failed = {gate["name"] for gate in report(run)["gates"] if not gate["passed"]}
    assert {"exact_match", "greedy_agreement"} <= failed
    assert median(run, "perplexity", "speculative") != pytest.approx(
        median(run, "perplexity", "reference"), rel=0.01
    )
    assert "machine" not in report(run)["conditions"]
    assert "may run on another" in report(run)["left_out"]["speedup_over_reference"]


def test_a_server_of_another_run_is_named_before_anything_is_measured(
    run: Path, write_run: WriteRun, tmp_path: Path
) -> None:
    path = write_run(speculation={**LOOKUP, "num_draft_tokens": 2})
    other = run.parent / "triton_repo/tiny"
    with start_server(other, free_address(), tmp_path / "other.log") as server:
        url = server.address.grpc
        found = validate(path, "--url", url)
    assert found.exit_code == 2
    assert f"the server at {url} serves another repository than" in found.output
    assert not (tmp_path / "reports/tiny/report.json").exists()


def code(repository: Path, model: str, text: str) -> None:
    """Append Python to the entry of a model."""
    file = repository / model / "1/model.py"
    file.write_text(file.read_text() + text)


DEAF = """
from specpipe.runtime.triton import requests
TextRequest = requests.TextRequest
def deaf(**values):
    return TextRequest(**{**values, "num_draft_tokens": None})
requests.TextRequest = deaf
"""
HASTY = """
from dataclasses import replace
from specpipe.runtime.triton import text as module
Limits = module.Limits
module.Limits = lambda most: Limits(min(most, 10))
"""


def test_speculation_left_on_in_the_plain_arm_is_caught(run: Path, tmp_path: Path) -> None:
    with served(run, tmp_path, lambda place: code(place, "tensorrt_llm_bls", DEAF)) as url:
        found = validate(run, "--url", url)
    assert found.exit_code == 5
    assert "FAILED: plain decoding does not speculate: " in found.output


def test_an_answer_that_ends_early_is_caught(run: Path, tmp_path: Path) -> None:
    with served(run, tmp_path, lambda place: code(place, "tensorrt_llm_bls", HASTY)) as url:
        found = validate(run, "--url", url)
    assert found.exit_code == 5
    failed = {gate["name"] for gate in report(run)["gates"] if not gate["passed"]}
    assert failed == {"exact_match", "early_stops", "defects"}
    assert median(run, "early_stops", "speculative") == 1
    assert any("ends early; " in line for line in found.output.splitlines())


class Relay:
    """Forwards connections to a server and counts them."""

    def __init__(self, url: str) -> None:
        host, port = url.rsplit(":", 1)
        self.target, self.accepted = (host, int(port)), 0
        self.open: list[socket.socket] = []
        self.threads: list[threading.Thread] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: socket.socket) -> None:
        self.threads.append(threading.Thread(target=target, args=args, daemon=True))
        self.threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                self.accepted += 1
                far = socket.create_connection(self.target)
                self.open += [near, far]
                for pair in ((near, far), (far, near)):
                    self._start(self._copy, *pair)

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while block := source.recv(1 << 16):
                target.sendall(block)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for end in (self.listener, *self.open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        for end in (self.listener, *self.open):
            end.close()


def test_requests_use_the_channel_of_the_first(server: Served) -> None:
    """The time to the first token does not include opening a connection."""
    with closing(Relay(server.url)) as relay:
        with Client(relay.url, server.client.endpoint) as client:
            for _ in range(3):
                client.generate("one two three", Options(max_tokens=4))
            assert relay.accepted == 1


def test_a_wrong_tokenizer_in_the_repository_fails(write_run: WriteRun) -> None:
    """Reference and server get its ids, so no metric can see it."""
    path = write_run()
    for file in (path.parent / "triton_repo/tiny").rglob("tokenizer.json"):
        text = file.read_text()
        wrong = text.replace('"e":', '"?":').replace('"o":', '"e":').replace('"?":', '"o":')
        assert wrong != text and len(wrong) == len(text)  # status compares the sizes of files
        file.unlink()  # it may be a link to the checkpoint's
        file.write_text(wrong)
    found = validate(path)
    assert found.exit_code == 5, found.output
    assert "the tokenizer is the source's: token " in found.output
