"""Benchmarks without a server: prompts, precisions, conditions, and figures of known answers."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from specpipe.bench.conditions import conditions
from specpipe.bench.front import Side
from specpipe.bench.front import summarise as summarise_front
from specpipe.bench.front_process import process_cpu_s
from specpipe.bench.precision import PRECISIONS, precision_of, with_precision
from specpipe.bench.prompts import prompt_sets, spaced
from specpipe.bench.serving import session_bytes
from specpipe.bench.speculation import summarise
from specpipe.cli.bench_options import PRECISIONS as CLI_PRECISIONS
from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.core.commit import find_commit
from specpipe.run.run import Run
from specpipe.serve.client import Acceptance, Generation


def answer(text: str, tokens: int, accepted: int, seconds: float) -> Generation:
    """Return an answer of which `accepted` tokens were drafted."""
    return Generation(text, (), Acceptance(2 * accepted, accepted), tokens, 0.1, seconds, ())


def write_prompts(file: Path, count: int) -> Path:
    file.write_text(
        "".join(json.dumps({"prompt": f"{file.stem} {n}"}) + "\n" for n in range(count))
    )
    return file


def test_prompts_are_evenly_spaced_and_all_of_a_short_file() -> None:
    assert spaced([str(n) for n in range(80)], 4) == ["0", "20", "40", "60"]
    assert spaced(["a", "b", "c"], 20) == ["a", "b", "c"]
    assert spaced(["a", "b", "c"], 2) == ["a", "b"]


def test_the_prompts_are_those_given_else_those_of_the_run_else_the_built_in_ones(
    write_config, tmp_path: Path
) -> None:
    own, given = write_prompts(tmp_path / "own.jsonl", 3), write_prompts(tmp_path / "chat.jsonl", 9)
    plain = read_config(write_config())
    (found,) = prompt_sets(plain, (), 100)
    assert (found.name, len(found.prompts)) == ("built-in", 20)
    config = read_config(write_config(validate={"prompts": str(own)}))
    assert [(s.name, s.prompts) for s in prompt_sets(config, (), 2)] == [
        ("own", ("own 0", "own 1"))
    ]
    sets = prompt_sets(config, (given, own), 3)
    assert [(s.name, s.prompts[1]) for s in sets] == [("chat", "chat 3"), ("own", "own 1")]


def test_a_run_in_another_precision_has_artifacts_of_its_own(write_config, tmp_path: Path) -> None:
    run = Run(read_config(write_config()), Workspace(tmp_path, "tiny"))
    int8 = with_precision(run, "int8")
    engine = int8.config.engine
    assert (int8.config.name, int8.workspace.name) == ("tiny.int8", "tiny.int8")
    assert (engine.dtype, engine.quantization) == ("bfloat16", "int8")
    assert precision_of(engine) == "int8" and with_precision(int8, "int8") is int8


def test_the_precisions_of_the_help_are_those_that_can_be_measured() -> None:
    assert tuple(PRECISIONS) == CLI_PRECISIONS


def test_figures_count_the_targets_own_token_and_weigh_answers_by_their_tokens(
    write_config,
) -> None:
    config = read_config(write_config())
    pairs = [
        (answer("a", 10, 0, 10.0), answer("a", 10, 5, 5.0)),  # 10 tokens in 5 steps, twice as fast
        (answer("b", 20, 0, 20.0), answer("c", 10, 0, 10.0)),  # 10 tokens in 10 steps, as fast
    ]
    row = summarise(config, "set", pairs, counts_drafts=True)
    assert row.tokens_per_step == pytest.approx(20 / 15)
    assert row.speedup.median == pytest.approx(1.5)
    assert row.overall_speedup == pytest.approx(2.0 / 1.5)
    assert row.tokens_per_s.median == pytest.approx(1.5)
    assert row.plain_tokens_per_s.median == pytest.approx(1.0)
    assert (row.equal_answers, row.answers) == (1, 2)
    assert summarise(config, "set", pairs, counts_drafts=False).tokens_per_step is None


def test_memory_is_that_of_the_processes_of_one_session(tmp_path: Path) -> None:
    for pid, session, kib in ((10, 10, 100), (11, 10, 20), (12, 12, 1000)):
        folder = tmp_path / str(pid)
        folder.mkdir()
        folder.joinpath("stat").write_text(f"{pid} (a ) b) S 1 {pid} {session} 0 -1")
        folder.joinpath("smaps_rollup").write_text(f"00-ff ---p\nRss: 9999 kB\nPss:  {kib} kB\n")
    (tmp_path / "13").mkdir()
    (tmp_path / "13/stat").write_text("13 (ended) S 1 13 10 0 -1")  # without smaps_rollup
    assert session_bytes(10, tmp_path) == 120 * 1024


def side(tokens: int, seconds: float, front_s: float, client_s: float, text: str = "a") -> Side:
    return Side((answer(text, tokens, 0, seconds),), seconds, client_s, front_s)


def test_the_cost_of_the_front_is_the_median_of_ratios_within_rounds(write_config) -> None:
    run = Run(read_config(write_config()), Workspace(Path("unused"), "tiny"))
    rounds = [  # the machine is twice as fast in the second round, for both sides
        (side(100, 10, 0, 0.001), side(100, 20, 0.01, 0.003)),
        (side(100, 5, 0, 0.001), side(100, 10, 0.03, 0.003)),
        (side(100, 5, 0, 0.001), side(100, 5, 0.02, 0.003, "b")),
    ]
    row = summarise_front(run, 1, rounds)
    assert row.ratio.median == pytest.approx(0.5) and row.ratio.interval == (0.5, 1.0)
    assert row.grpc_tokens_per_s.median == pytest.approx(20)
    assert row.front_tokens_per_s.median == pytest.approx(10)
    assert row.front_cpu_us == pytest.approx(200)  # 60 ms of 300 tokens
    assert row.client_cpu_us == pytest.approx(20)
    assert (row.equal_answers, row.answers) == (2, 3)


def test_the_cpu_time_of_a_process_is_that_of_user_and_system(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    zeros = " ".join(["0"] * 10)
    (tmp_path / "7/stat").write_text(f"7 (a ) b) S {zeros} 150 50 9 9")
    assert process_cpu_s(7, tmp_path) == pytest.approx(200 / os.sysconf("SC_CLK_TCK"))


def git(folder: Path, *words: str) -> None:
    named = ("-c", "user.name=n", "-c", "user.email=e@example.com")
    subprocess.run(["git", "-C", str(folder), *named, *words], check=True, capture_output=True)


def test_the_commit_is_that_of_a_clone_and_marked_if_files_differ(tmp_path: Path) -> None:
    file = tmp_path / "__init__.py"
    file.write_text("")
    git(tmp_path, "init")
    assert find_commit(tmp_path) is None  # as in an environment that a clone ignores
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "One")
    commit = find_commit(tmp_path)
    assert commit is not None and len(commit) >= 7
    file.write_text("changed")
    assert find_commit(tmp_path) == f"{commit}-dirty"


def test_conditions_name_load_machine_and_versions(write_config) -> None:
    found = conditions([read_config(write_config())], "one request")
    assert found["load"] == "one request" and "CPU" in found["machine"]
    assert "openvino " in found["versions"] and "python 3" in found["versions"]
    assert "format" not in found["versions"]
