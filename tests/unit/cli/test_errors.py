"""What users get wrong at the command line: one sentence, an exit code, and JSON if they asked."""

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from specpipe.cli import main

# The arguments of commands that take more than a run.
ARGUMENTS = {
    "bench costs": ["--config", "nofile.yaml", "--out", "nofile.json"],
    "generate": ["hi", "--config", "nofile.yaml"],
    "inspect": ["nowhere"],
    "report diff": ["nowhere", "nowhere"],
    "report export": ["nowhere", "--format", "aiperf"],
}


def run(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def commands(group: click.Group, prefix: str = "") -> Iterator[str]:
    """Yield the names of all commands, those in a group after the name of the group."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        elif name not in (
            "completion",
            "openai",
            "acceptance",
        ):  # two read no file, one reports each
            yield prefix + name


@pytest.mark.parametrize("command", list(commands(main)))
def test_every_command_reports_an_error_as_json_too(command: str) -> None:
    run_of = ["nofile.yaml"] if command.startswith("bench ") else ["--config", "nofile.yaml"]
    result = run(*command.split(), *ARGUMENTS.get(command, run_of), "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert error["exit_code"] == 2 and "no such f" in error["message"]
    assert f"error: {error['message']}" in result.stderr and (error["hint"] or "") in result.stderr


def test_without_json_an_error_leaves_stdout_empty() -> None:
    result = run("plan", "--config", "nofile.yaml")
    assert result.stdout == "" and result.stderr.startswith("error: nofile.yaml: no such file\n")


def test_what_the_machine_refuses_is_json_too(write_config, monkeypatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", "engines/tiny")

    monkeypatch.setattr("specpipe.run.stages.build", refuse)
    result = run("build", "--config", str(write_config()), "--json")
    assert json.loads(result.stdout)["error"]["exit_code"] == result.exit_code == 4


def test_a_refused_build_is_one_json_document(write_config) -> None:
    engine = {"backend": "openvino", "dtype": "float16"}
    result = run("build", "--config", str(write_config(engine=engine)), "--json")
    assert json.loads(result.stdout)["error"]["exit_code"] == result.exit_code == 3


def test_a_failure_after_the_json_stays_on_stderr(tmp_path: Path) -> None:
    """`inspect` prints what it found, and then fails for the defects."""
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "LlamaForCausalLM"}))
    result = run("inspect", str(tmp_path), "--json")
    assert result.exit_code == 5 and json.loads(result.stdout)["defects"]
    assert "defect" in result.stderr


def test_a_folder_in_the_place_of_a_config_is_named_one(write_config, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("")
    result = run("plan", "--config", str(tmp_path))
    assert result.exit_code == 2 and f"{tmp_path} is a folder, not a YAML file" in result.stderr
    assert f"hint: give a file, e.g. {tmp_path}/mine.yaml" in result.stderr
    assert "Errno" not in result.stderr


def test_a_file_in_the_place_of_a_checkpoint_is_named_one(tmp_path: Path) -> None:
    (tmp_path / "rank0.safetensors").write_text("")
    result = run("inspect", str(tmp_path / "rank0.safetensors"))
    assert "rank0.safetensors is a file" in result.stderr and str(tmp_path) in result.stderr


@pytest.mark.parametrize("command", ["tune", "recommend"])
def test_a_wrong_gpu_or_cost_model_is_named_by_its_flag(command: str, write_config) -> None:
    config = str(write_config())
    result = run(command, "--config", config, "--gpu", "H101")
    assert result.exit_code == 3 and "error: --gpu is 'H101', which is not known" in result.stderr
    result = run(command, "--config", config, "--cost-model", "nofile")
    assert result.exit_code == 2 and "nofile: cannot be read: No such file" in result.stderr


@pytest.mark.parametrize("place", ["file", "/proc"])
def test_tune_refuses_a_place_it_cannot_write_to_before_it_works(
    place: str, write_config, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / place / "tuned.yaml"
    result = run("tune", "--config", str(write_config()), "--out", str(out))
    assert result.exit_code == 2 and "is not a writable directory" in result.stderr


def test_a_workspace_that_cannot_be_made_is_a_sentence(write_config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    workspace = str(tmp_path / "file/below")
    result = run("build", "--config", str(write_config()), "--workspace", workspace)
    assert result.exit_code == 4 and "cannot be written: Not a directory" in result.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "192.0.2.1"], "hint: give --host an address of this machine"),
        (["--grpc-port", "9", "--http-port", "9"], "the three ports must differ"),
    ],
)
def test_an_address_that_is_not_of_this_machine_gets_a_hint_for_that(
    flags: list[str], words: str, tmp_path: Path
) -> None:
    (tmp_path / "ensemble").mkdir()
    (tmp_path / "ensemble/config.pbtxt").write_text("")
    result = run("serve", "--repository", str(tmp_path), *flags)
    assert result.exit_code == 2 and words in result.stderr


@pytest.mark.parametrize(
    ("args", "message", "help_of"),
    [
        (["plan", "--conf"], "no such option '--conf'", "specpipe plan"),
        (["plan"], "missing option '--config'", "specpipe plan"),
        (["bild"], "no such command 'bild'", "specpipe"),
        (["--bad"], "no such option '--bad'", "specpipe"),
        (["generate", "--top-p", "3", "hi"], "invalid value for '--top-p'", "specpipe generate"),
        (["train", "medusas"], "no such command 'medusas'", "specpipe train"),
        (["plan", "--config"], "option '--config' requires an argument", "specpipe plan"),
        (["completion"], "missing argument 'SHELL'. Choose from: bash, zsh, fish\n",
         "specpipe completion"),
    ],
)  # fmt: skip
def test_a_usage_error_has_the_form_of_every_error(
    args: list[str], message: str, help_of: str
) -> None:
    result = run(*args)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith(f"error: {message}")
    assert f"  hint: run `{help_of} --help`" in result.stderr


@pytest.mark.parametrize("args", [["plan"], ["plan", "--conf"], ["generate", "--top-p", "3"]])
def test_a_usage_error_is_json_too(args: list[str]) -> None:
    result = run(*args, "--json")
    error = json.loads(result.stdout)["error"]
    assert error["exit_code"] == result.exit_code == 2
    assert f"error: {error['message']}" in result.stderr


@pytest.mark.parametrize("group", [[], ["train"], ["bench"]])
def test_a_group_without_a_command_prints_its_help(group: list[str]) -> None:
    result = run(*group)
    assert "Commands:" in result.output and "error: " not in result.output
