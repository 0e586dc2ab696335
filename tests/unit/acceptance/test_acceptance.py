"""`specpipe acceptance` without a GPU: it continues after failures and reports them."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from specpipe.acceptance.session import STEPS, ConfigResult, Outcome
from specpipe.cli import main
from specpipe.cli.acceptance import STEPS as CLI_STEPS


def accept(tmp_path: Path, steps: str, *configs: Path) -> tuple[int, list[dict]]:
    command = [sys.executable, "-m", "specpipe", "acceptance", "--steps", steps,
               "--report", str(tmp_path / "report"),
               "--workspace", str(tmp_path / "work"), *map(str, configs)]  # fmt: skip
    done = subprocess.run(command, stderr=subprocess.DEVNULL, env=os.environ, check=False)
    return done.returncode, json.loads((tmp_path / "report/results.json").read_text())


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["acceptance", *args])


@pytest.mark.slow
def test_a_config_that_fails_does_not_stop_the_others(
    write_config, gpu_machine: Path, tmp_path: Path
) -> None:
    engine = {"backend": "tensorrt", "gpu": "H100-SXM", "dtype": "bfloat16", "max_batch_size": 2,
              "max_input_len": 100, "max_seq_len": 200}  # fmt: skip
    configs = []
    for name, changes in (("wrong-gpu", {"gpu": "L4"}), ("good", {})):
        path = write_config(name=name, engine={**engine, **changes})
        configs.append(path.rename(tmp_path / f"{name}.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: broken\nnonsense: 1\n")
    code, results = accept(tmp_path, "build,serve,validate,bench", *configs, broken)
    assert code == 4
    wrong, good, unread = ([(s["step"], s["state"]) for s in r["steps"]] for r in results)
    assert wrong == [("build", "failed"), ("serve", "skipped"), ("validate", "skipped"),
                     ("bench", "skipped")]  # fmt: skip
    assert "engine.gpu is L4" in results[0]["steps"][0]["note"]
    assert good[0] == ("build", "ok") and good[1][0] == "serve"
    assert unread == [("config", "failed")]
    assert "unknown key 'nonsense'" in results[2]["steps"][0]["note"]
    with tarfile.open(tmp_path / "report.tar.gz") as tar:
        names = set(tar.getnames())
    assert {"report/summary.md", "report/good/build.txt", "report/nvidia-smi.txt",
            "report/good/artifacts/engines/good/target/specpipe.json",
            "report/good/artifacts/engines/good/target.build.log"} <= names  # fmt: skip
    assert not any(name.endswith((".engine", ".safetensors")) for name in names)


def test_a_folder_that_is_no_report_is_kept(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report/thesis.txt").write_text("mine")
    result = run("nofile.yaml", "--report", str(tmp_path / "report"))
    assert result.exit_code == 2
    assert "report is not a report of `specpipe acceptance`" in result.stderr
    assert (tmp_path / "report/thesis.txt").read_text() == "mine"


def test_an_unknown_step_is_refused() -> None:
    result = run("nofile.yaml", "--steps", "build,deploy")
    assert result.exit_code == 2 and "'deploy' is not one of doctor, plan, build" in result.stderr


def test_the_steps_of_the_help_are_those_that_run() -> None:
    assert CLI_STEPS == STEPS


@pytest.mark.slow
def test_the_json_names_every_config_and_the_report(tmp_path: Path) -> None:
    report = tmp_path / "report"
    result = run("nofile.yaml", "--report", str(report), "--steps", "plan", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 4 and "1 step failed or skipped" in result.stderr
    assert [step["step"] for config in found["configs"] for step in config["steps"]] == ["config"]
    assert Path(found["summary"]).is_file() and Path(found["archive"]).is_file()
    assert run("nofile.yaml", "--report", str(report), "--steps", "plan").exit_code == 4  # again


def test_the_docker_line_of_the_help_keeps_its_line_breaks() -> None:
    text = run("--help").stdout
    lines = text[text.index("docker run") : text.index("acceptance model_configs")].splitlines()
    assert len(lines) == 3 and all(line.endswith("\\") for line in lines[:-1])


def test_an_interrupted_acceptance_reports_the_steps_that_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(session: object, path: Path, steps: object, cases: list, notify: object) -> None:
        cases.append(ConfigResult(path, "first", [Outcome("plan", "ok", 1.0)]))
        raise KeyboardInterrupt

    monkeypatch.setattr("specpipe.acceptance.accept.run_case", interrupt)
    monkeypatch.setattr("specpipe.acceptance.accept.write_machine", lambda report: None)
    result = run("run.yaml", "--report", str(tmp_path / "report"))
    assert result.exit_code == 130 and "interrupted" in result.stderr
    assert "| first | plan | ok | 1.0 |  |" in (tmp_path / "report/summary.md").read_text()
    assert (tmp_path / "report.tar.gz").is_file()
