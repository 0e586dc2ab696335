"""`specpipe bench` as users call it: the commands without a server, and what they refuse."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from specpipe.bench.engine import SHAPES
from specpipe.bench.soak_requests import KINDS
from specpipe.cli import main
from specpipe.cli.bench_options import KINDS as CLI_KINDS

LOOKUP = {"method": "prompt_lookup", "num_draft_tokens": 3}
GPU = {"backend": "tensorrt", "gpu": "H100-SXM", "dtype": "bfloat16", "max_batch_size": 2,
       "max_input_len": 100, "max_seq_len": 200}  # fmt: skip


def bench(*words: str) -> Result:
    return CliRunner().invoke(main, ["bench", *words])


@pytest.mark.slow
def test_engine_times_the_shapes_that_have_room(write_config, tmp_path: Path) -> None:
    engine = {"backend": "openvino", "max_batch_size": 2, "max_input_len": 100, "max_seq_len": 200}
    path = str(write_config(engine=engine))
    words = ("engine", path, "--workspace", str(tmp_path), "--rounds", "1", "--past", "64")
    result = bench(*words, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (row,) = found["rows"]
    assert (row["run"], row["precision"], row["past"]) == ("tiny", "float32", 64)
    times = {(step["sequences"], step["rows"]): step["ms"] for step in row["steps"]}
    assert tuple(times) == SHAPES
    assert times[1, 1] > 0 and times[8, 1] is None  # the pool has room for 400 tokens
    assert [rate["chunk"] for rate in row["prefill"]] == [32, 64, 128]
    assert {"load", "machine", "versions", "specpipe"} <= found["conditions"].keys()
    table = bench(*words).stdout
    assert "| run | dtype | 1 x 1, ms |" in table and "| tiny | float32 | " in table
    assert table.startswith("- load: 64 cached tokens per sequence, medians of 1 round\n")


@pytest.mark.slow
def test_engine_measures_other_precisions(write_config, tmp_path: Path) -> None:
    words = ("engine", str(write_config()), "--workspace", str(tmp_path), "--rounds", "1")
    result = bench(
        *words, "--past", "32", "--precision", "float32", "--precision", "int8", "--json"
    )
    rows = json.loads(result.stdout)["rows"]
    assert [(row["run"], row["precision"]) for row in rows] == [
        ("tiny", "float32"), ("tiny.int8", "int8")
    ]  # fmt: skip


@pytest.mark.slow
def test_tuning_compares_both_choices(write_config, tmp_path: Path) -> None:
    path = write_config(
        speculation={"method": "lookahead", "window_size": 2, "ngram_size": 2,
                     "verification_set_size": 2},
        engine={"backend": "openvino", "max_input_len": 400, "max_seq_len": 500},
        validate={"num_prompts": 2, "max_tokens": 6},
    )  # fmt: skip
    result = bench("tuning", str(path), "--workspace", str(tmp_path), "--rounds", "1", "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert row["settings"] == 4  # three windows and plain decoding
    assert {row["chosen"]["method"], row["fastest"]["method"]} <= {"none", "lookahead"}
    assert row["relative_speed"]["samples"] == 1 and row["relative_speed"]["median"] > 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("speculation", 2, "missing argument 'CONFIG...'"),
        ("speculation {} --precision int2", 2, "'int2' is not one of 'float32'"),
        ("speculation {} --prompts nofile.jsonl", 2, "nofile.jsonl: cannot be read"),
        ("speculation {} --count 0", 2, "0 is not in the range x>=1"),
        ("serving {} --starts 0", 2, "0 is not in the range x>=1"),
        ("soak {} --kind rude", 2, "'rude' is not one of 'whole'"),
        ("soak {} nofile.yaml", 2, "nofile.yaml: no such file"),
        ("engine {} --past 193", 2, "--past is 193: engine.max_seq_len of {} leaves room for 192"),
        ("engine {} --rounds none", 2, "'none' is not a valid integer range"),
        ("tuning {} --rounds 0", 2, "0 is not in the range x>=1"),
        ("front {} --streams 0", 2, "0 is not in the range x>=1"),
        ("serving {} --url http://[", 2, "is no address of an OpenAI API"),
        ("serving {} --url http://h:1", 2, "--url needs --clients"),
        ("speculation {} {} --url http://h:1", 2, "--url is the server of one run"),
        ("speculation {} --precision int8 --url http://h:1", 2, "give one CONFIG, no --precision"),
        ("speculation {} --url http://h:1", 2, "cannot be served: it is not built yet"),
        ("speculation {} --tls-ca {}", 2, "--tls-ca needs --url"),
        ("engine {} --url h:1", 2, "bench engine takes no --url: it times the engine"),
        ("tuning {} --url h:1", 2, "bench tuning takes no --url: it decodes"),
        ("soak {} --url h:1", 2, "bench soak takes no --url: it watches the processes"),
        ("front {} --url h:1", 2, "bench front takes no --url: it starts the server"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_built(
    words: str, code: int, message: str, write_config, tmp_path: Path
) -> None:
    path = str(write_config(speculation=LOOKUP))
    result = bench(*words.replace("{}", path).split(), "--workspace", str(tmp_path / "w"))
    assert result.exit_code == code, result.output
    assert message.replace("{}", path) in result.stderr
    assert not (tmp_path / "w").exists()


def test_speculation_refuses_runs_that_have_nothing_to_compare(write_config) -> None:
    result = bench("speculation", str(write_config()))
    assert result.exit_code == 2 and "this run does not speculate" in result.stderr
    always = write_config(speculation=LOOKUP, serving={"loop": "bls"})
    result = bench("speculation", str(always))
    assert result.exit_code == 3
    assert "no request can turn the speculation of method prompt_lookup off" in result.stderr


VLLM = {"backend": "vllm", "gpu": "H100-SXM", "dtype": "bfloat16", "max_batch_size": 2,
        "max_input_len": 100, "max_seq_len": 200}  # fmt: skip


def test_front_refuses_a_run_whose_server_answers_over_http(write_config) -> None:
    result = bench("front", str(write_config(engine=VLLM, serving={"front": "vllm_serve"})))
    assert result.exit_code == 3 and "there is no front to measure" in result.stderr


def test_engine_refuses_a_run_for_a_gpu(write_config) -> None:
    result = bench("engine", str(write_config(engine=GPU)))
    assert result.exit_code == 3 and "not those of backend tensorrt" in result.stderr


def test_the_kinds_of_the_help_are_those_that_can_be_sent() -> None:
    assert tuple(KINDS) == CLI_KINDS
