"""`specpipe bench` on real servers of the tiny model."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from specpipe.cli import main
from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.openai.app import Front, FrontOptions
from specpipe.openai.server import FrontAddress, serve_front
from specpipe.run.run import Run
from specpipe.run.stages import build
from specpipe.serve.address import free_address
from specpipe.serve.description import fetch_endpoint
from specpipe.serve.tritonserver import start_server
from specpipe.tune.cost import Costs, read_costs
from tests.helpers.servers import Served

pytestmark = pytest.mark.e2e

PROMPTS = ("The quick brown fox jumps over the lazy dog. The quick", "one two one two one two one")
LOOKUP = {"method": "prompt_lookup", "num_draft_tokens": 3, "min_matching_ngram_size": 1,
          "draft_length": "fixed"}  # fmt: skip
WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path, tiny: Path) -> WriteRun:
    """Return a function that writes a run of the tiny model and its prompts into `tmp_path`."""

    def write(**sections: object) -> Path:
        prompts = tmp_path / "chat.jsonl"
        prompts.write_text("\n".join(json.dumps({"prompt": text}) for text in PROMPTS))
        values = {
            "name": "tiny", "target": {"model": str(tiny)}, "speculation": LOOKUP,
            "engine": {"backend": "openvino", "max_batch_size": 2, "max_input_len": 200,
                       "max_seq_len": 400},
            "serving": {"max_queue_size": 2}, "validate": {"prompts": str(prompts)}, **sections,
        }  # fmt: skip
        path = tmp_path / "run.yaml"
        path.write_text(json.dumps(values))
        return path

    return write


def bench(command: str, path: Path, *words: str) -> Result:
    line = ["bench", command, str(path), "--workspace", str(path.parent), *words]
    return CliRunner().invoke(main, line)


@pytest.mark.parametrize("serving", [{}, {"decoupled": False}])
def test_speculation_is_compared_with_plain_decoding(
    serving: dict[str, object], write_run: WriteRun
) -> None:
    path = write_run(serving=serving)
    result = bench("speculation", path, "--max-tokens", "16", "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert (row["run"], row["prompts"], row["precision"]) == ("tiny", "chat", "float32")
    assert row["equal_answers"] == row["answers"] == 2  # in float32 speculation is lossless
    assert row["tokens_per_step"] >= 1 and row["speedup"]["samples"] == 2


def test_speculation_prints_a_table_with_a_line_for_each_file(write_run: WriteRun) -> None:
    path = write_run()
    chat, code = path.parent / "chat.jsonl", path.parent / "code.jsonl"
    code.write_text('{"prompt": "def one(two):"}\n')
    files = ("--prompts", str(chat), "--prompts", str(code))
    result = bench("speculation", path, "--max-tokens", "8", "--count", "1", *files)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[2] for line in lines] == ["prompts", "chat", "code"]
    assert all(line.endswith("| 1 | 1 |") for line in lines[1:])


def test_serving_measures_start_and_memory(write_run: WriteRun) -> None:
    result = bench("serving", write_run(), "--starts", "1", "--clients", "2", "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert row["start_s"]["samples"] == 1 and row["memory_bytes"] > 20e6
    parts = row["weights_bytes"], row["kv_cache_bytes"], row["rest_bytes"]
    assert sum(parts) == row["memory_bytes"] and row["weights_bytes"] > 200_000
    assert {(p["load"], p["arm"]) for p in row["loads"]} == {
        ("2 clients", "plain"), ("2 clients", "speculative")
    }  # fmt: skip


def test_the_front_is_compared_with_grpc_and_answers_alike(write_run: WriteRun) -> None:
    words = ("--streams", "1", "--streams", "3", "--rounds", "1", "--max-tokens", "8", "--json")
    result = bench("front", write_run(), *words)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [(row["run"], row["streams"]) for row in rows] == [
        ("tiny.3-slots", 1), ("tiny.3-slots", 3)
    ]  # fmt: skip
    for row in rows:
        assert row["equal_answers"] == row["answers"] == row["streams"]
        low, high = row["ratio"]["interval"]
        assert 0 < low <= row["ratio"]["median"] <= high


@contextmanager
def running(path: Path) -> Iterator[tuple[str, str]]:
    """Serve a run with a front before it; return both addresses, of gRPC and of HTTP."""
    config = read_config(path)
    run = Run(config, Workspace(path.parent, config.name))
    build(run)
    port, log = free_address().http_port, path.parent / "server.log"
    with start_server(run.workspace.repository, free_address(), log) as server:
        grpc = server.address.grpc
        front = Front(FrontOptions(grpc, "tiny"), lambda: fetch_endpoint(grpc, None))
        with serve_front(front, FrontAddress(port=port)):
            yield grpc, f"http://127.0.0.1:{port}"


def test_a_running_server_is_measured_over_grpc_and_over_http(write_run: WriteRun) -> None:
    path, steps = write_run(), set()
    with running(path) as urls:
        for url in urls:
            result = bench("speculation", path, "--max-tokens", "16", "--json", "--url", url)
            assert result.exit_code == 0, result.output
            found = json.loads(result.stdout)
            assert found["conditions"]["server"].startswith(url)
            (row,) = found["rows"]
            assert row["equal_answers"] == row["answers"] == 2
            steps.add(row["tokens_per_step"])
        assert len(steps) == 1 and None not in steps
        loads = bench("serving", path, "--clients", "2", "--json", "--url", urls[1])
    assert loads.exit_code == 0, loads.output
    (row,) = json.loads(loads.stdout)["rows"]
    assert (row["start_s"], row["memory_bytes"], row["rest_bytes"]) == (None, None, None)
    assert {p["arm"] for p in row["loads"]} == {"plain", "speculative"}
    assert not any(p["failed"] for p in row["loads"])


def test_the_cost_model_of_a_server_is_one_that_tune_reads(server: Served, tmp_path: Path) -> None:
    out = tmp_path / "deep/costs.json"
    words = ("--out", str(out), "--streams", "2", "--max-tokens", "12", "--rounds", "1")
    line = ["bench", "costs", "--url", server.url, *words]
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 0, result.output
    assert "| 2 | 2 streams | " in result.stdout and "| 64 | 64 prompt tokens | " in result.stdout
    costs = read_costs(out)
    assert isinstance(costs, Costs) and costs.step.rows == (1, 2, 8, 16, 32, 64)
    assert costs.step(1) > 0 and json.loads(out.read_text())["conditions"]["server"] == server.url


def test_a_soak_test_sends_every_kind_and_finds_nothing_wrong(write_run: WriteRun) -> None:
    result = bench("soak", write_run(), "--requests", "100", "--clients", "3", "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert row["failure"] is None
    assert {o["outcome"] for o in row["outcomes"]} <= {"right", "queue full"}
    assert {o["kind"] for o in row["outcomes"]} == {
        "whole", "streamed", "long", "refused", "garbage", "half-open", "http-disconnect"
    }  # fmt: skip
    assert sum(o["count"] for o in row["outcomes"]) == 100
    names = [process["process"] for process in row["processes"]]
    assert names[0] == "tritonserver" and "tensorrt_llm" in names
    assert all(len(process["resident_mib"]) == 10 for process in row["processes"])


def test_a_soak_test_of_one_kind_prints_outcomes_and_processes(write_run: WriteRun) -> None:
    result = bench("soak", write_run(), "--requests", "10", "--clients", "1", "--kind", "streamed")
    assert result.exit_code == 0, result.output
    assert "| tiny | streamed | right | 10 |" in result.stdout
    assert "- tritonserver: " in result.stdout and "tiny: the server still runs" in result.stdout


def test_a_soak_test_refuses_a_kind_that_the_server_does_not_support(write_run: WriteRun) -> None:
    path = write_run(serving={"decoupled": False})
    result = bench("soak", path, "--requests", "10", "--kind", "whole", "--kind", "streamed")
    assert result.exit_code == 3 and "kind streamed: tensorrt_llm_bls answers" in result.stderr


def test_a_wrong_answer_fails_a_soak_test(
    write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The expected answers are spoiled, since the served ones are right."""
    from specpipe.bench import soak

    def spoil(config: object, running: object) -> object:
        subject = right(config, running)
        subject.answers = dict.fromkeys(subject.answers, "something else")
        return subject

    right = soak.make_subject
    monkeypatch.setattr(soak, "make_subject", spoil)
    words = ("--requests", "10", "--clients", "1", "--kind", "whole")
    result = bench("soak", write_run(), *words)
    assert result.exit_code == 5 and "| tiny | whole | WRONG | 10 |" in result.stdout
    assert "the soak test failed: tiny" in result.stderr
