"""The command line: help that matches the golden files, exit codes, JSON on stdout."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from specpipe.cli import main, refusal
from specpipe.cli.options import DEFAULT_URL
from specpipe.cli.output import escape_controls, harmless, progress_lines
from specpipe.cli.serve import generate_command
from specpipe.serve.guard import Tls

COMMANDS = ["acceptance", "bench", "build", "chat", "compile", "completion", "convert",
            "doctor", "generate", "inspect", "openai", "package", "plan", "recommend", "report",
            "serve", "status", "train", "tune", "validate"]  # fmt: skip
TRAINING = ["train draft", "train eagle3", "train medusa", "train redrafter"]
BENCHMARKS = [
    f"bench {name}"
    for name in ("costs", "engine", "front", "serving", "soak", "speculation", "tuning")
]
REPORTS = ["report diff", "report export"]
GOLDEN = Path(__file__).parents[2] / "golden"


def run(*args: str):
    return CliRunner().invoke(main, list(args))


def test_there_are_these_commands_and_no_others() -> None:
    assert sorted(main.commands) == COMMANDS
    assert [f"train {name}" for name in sorted(main.commands["train"].commands)] == TRAINING
    assert [f"bench {name}" for name in sorted(main.commands["bench"].commands)] == BENCHMARKS
    assert [f"report {name}" for name in sorted(main.commands["report"].commands)] == REPORTS


@pytest.mark.parametrize("command", ["", *COMMANDS, *TRAINING, *BENCHMARKS, *REPORTS])
def test_help_is_the_golden_one(command: str) -> None:
    result = run(*command.split(), "--help")
    file = GOLDEN / f"help_{command.replace(' ', '_') or 'specpipe'}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(result.output)
    assert result.output == file.read_text(), "UPDATE_GOLDEN=1 writes it"
    assert not command or re.search(r"Example:  (specpipe|scripts/)", result.output)


@pytest.mark.parametrize("group", ["", "train", "bench", "report"])
def test_no_command_is_cut_short_in_the_list(group: str) -> None:
    commands = run(*group.split(), "--help").output.split("Commands:")[1]
    assert "..." not in commands


def test_help_imports_neither_torch_nor_transformers_nor_openvino() -> None:
    code = (
        "import sys, specpipe.cli\n"
        "try: specpipe.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'openvino', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["build"], 2, "error: missing option '--config'"),
        (["bild"], 2, "error: no such command 'bild'"),
        (["build", "--config", "nothing.yaml"], 2, "nothing.yaml: no such file"),
        (["plan", "--config", "README.md"], 2, "README.md:"),
        (["package", "--config", "f", "--image", "r/x:1"], 2, "--image needs --deploy"),
        (["plan", "--config", "f", "--workspace", "README.md"], 2, "'README.md' is a file"),
        (
            ["generate", "--url", "127.0.0.1:1", "hi"],
            6,
            "no server at 127.0.0.1:1 (connection refused)",
        ),
        (["serve", "--config", "model_configs/llama70b_draft7b.yaml", "--http-port", "0"], 2, "0"),
    ],
)
def test_exit_codes(args: list[str], code: int, words: str) -> None:
    result = run(*args)
    assert result.exit_code == code, result.output
    assert words in result.output


def test_a_run_that_cannot_be_built_exits_with_3(write_config) -> None:
    path = write_config(engine={"backend": "openvino", "tp_size": 2})
    result = run("build", "--config", str(path))
    assert result.exit_code == 3 and "cannot be built" in result.output


def test_build_status_and_plan_speak_json(write_config, tmp_path: Path) -> None:
    path, place = str(write_config()), ["--workspace", str(tmp_path / "w"), "--json"]
    plan = json.loads(run("plan", "--config", path, *place).stdout)
    assert plan["buildable"] and plan["engines"]["target"]["model"]["num_hidden_layers"] == 2
    built = json.loads(run("build", "--config", path, *place).stdout)
    assert [b["fresh"] for b in built] == [False] * 3
    assert all(s["fresh"] for s in json.loads(run("status", "--config", path, *place).stdout))


def test_a_refused_plan_exits_with_3_and_still_prints_the_plan(write_config) -> None:
    path = write_config(engine={"backend": "openvino", "tp_size": 2})
    result = run("plan", "--config", str(path))
    assert result.exit_code == 3
    assert "REFUSED      the OpenVINO backend supports tp_size 1 only" in result.output


def test_serving_what_is_not_built_says_what_to_run(write_config, tmp_path: Path) -> None:
    for command in ("serve", "validate"):
        result = run(command, "--config", str(write_config()), "--workspace", str(tmp_path))
        assert result.exit_code == 2 and "specpipe build" in result.output


@pytest.mark.parametrize(
    ("command", "then"),
    [
        ("convert", "specpipe compile --config {} --workspace {out}"),
        ("compile", "specpipe package --config {} --workspace {out}"),
        ("package", "specpipe serve --config {} --workspace {out}"),
        ("package --deploy docker", "follow {out}/deploy/tiny/docker/README.md"),
        ("build", "specpipe serve --config {} --workspace {out}"),
    ],
)
def test_a_command_names_the_next_one_unless_a_program_reads_it(
    command: str, then: str, write_config, tmp_path: Path
) -> None:
    path, out = str(write_config()), tmp_path / "w"
    place = ["--config", path, "--workspace", str(out)]
    assert run("build", *place, "--json").stderr.find("next:") == -1
    result = run(*command.split(), *place)
    assert result.stderr.endswith(f"next: {then.format(path, out=out)}\n"), result.stderr


@pytest.mark.parametrize(
    ("config", "workspace", "url", "files", "options"),
    [
        ("f.yaml", ".", DEFAULT_URL, (), "--config f.yaml"),
        ("my run.yaml", "w", DEFAULT_URL, (), "--config 'my run.yaml' --workspace w"),
        (None, ".", "127.0.0.1:9001", (), "--url 127.0.0.1:9001"),
        (None, ".", "[::1]:8001", (), "--url '[::1]:8001'"),
        ("f.yaml", ".", DEFAULT_URL, ("c", "k", None), "--config f.yaml --tls-ca FILE"),
        (None, ".", DEFAULT_URL, ("c", "k", "a"),
         "--tls-ca FILE --tls-certificate FILE --tls-key FILE"),
    ],
)  # fmt: skip
def test_a_server_names_the_command_that_reaches_it(
    config: str | None, workspace: str, url: str, files: tuple[str, ...], options: str
) -> None:
    tls = Tls(*(file and Path(file) for file in files)) if files else None
    command = generate_command(config and Path(config), Path(workspace), url, tls)
    assert command == f'specpipe generate {options} --stream "What is the capital of France?"'


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_asks_specpipe(shell: str) -> None:
    script = run("completion", shell).stdout
    assert f"_SPECPIPE_COMPLETE={shell}_complete" in script and "specpipe" in script


def test_the_completion_of_bash_completes_commands() -> None:
    script = run("completion", "bash").stdout
    ask = (
        'COMP_WORDS=(specpipe val); COMP_CWORD=1; _specpipe_completion specpipe; echo "$COMPREPLY"'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{ask}"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "validate"


def test_doctor_reports_json_and_needs_no_config() -> None:
    result = run("doctor", "--json")
    assert {"python", "torch", "gpu"} <= {f["name"] for f in json.loads(result.stdout)}


def test_ctrl_c_is_no_bug(write_config, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("specpipe.run.stages.build", interrupt)
    result = run("build", "--config", str(write_config()))
    assert result.exit_code == 130 and "interrupted" in result.output


@pytest.mark.parametrize(("code", "exit_code"), [(errno.EACCES, 4), (errno.ENOENT, 1)])
def test_what_the_machine_refuses_is_a_sentence_and_a_bug_keeps_its_traceback(
    code: int, exit_code: int, write_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(code, os.strerror(code), "engines/tiny")

    monkeypatch.setattr("specpipe.run.stages.build", refuse)
    result = run("build", "--config", str(write_config()))
    assert result.exit_code == exit_code
    assert ("error: engines/tiny: Permission denied" in result.output) == (exit_code == 4)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--url", "ftp://127.0.0.1:8001", "hi"], "is no address of an OpenAI API"),
        (["--url", "localhost", "hi"], "is not HOST:PORT of a gRPC endpoint"),
        (["caf\udce9"], "the prompt is not UTF-8"),
        ([""], "the prompt is empty"),
        ([], "the prompt is not UTF-8"),
    ],
)
def test_generate_refuses_what_is_no_prompt_or_no_endpoint(args: list[str], words: str) -> None:
    result = CliRunner().invoke(main, ["generate", *args], input=b"caf\xe9")
    assert result.exit_code == 2 and words in result.output


def test_tune_refuses_a_folder_as_its_output_before_it_works(write_config, tmp_path: Path) -> None:
    result = run("tune", "--config", str(write_config()), "--out", str(tmp_path))
    assert result.exit_code == 2 and "is a directory" in result.output


def test_a_terminal_never_gets_control_characters_of_a_model() -> None:
    clipboard = "\x1b]52;c;cm0gLXJm\x07"
    assert escape_controls(f"a{clipboard}b\r\x9b2J") == r"a\x1b]52;c;cm0gLXJm\x07b\r\x9b2J"
    assert escape_controls("abc\u202egpj.exe") == r"abc\u202egpj.exe"
    text = "Zwei Zeilen\n\tund \U0001f469\u200d\U0001f680 naïve"
    assert escape_controls(text) == text


def test_a_log_gets_a_line_of_progress_every_half_minute(capsys) -> None:
    times = iter([0.0, 1.0, 29.9, 30.0, 30.0, 59.0, 61.0, 61.0])
    update = progress_lines("prompts", lambda: next(times))
    for done in range(1, 6):
        update(done, 20)
    assert capsys.readouterr().err == "prompts: 3 of 20\nprompts: 5 of 20\n"


def test_a_build_prints_no_empty_line_in_a_log(write_config, tmp_path: Path) -> None:
    result = run("build", "--config", str(write_config()), "--workspace", str(tmp_path / "w"))
    assert "" not in result.stderr.splitlines()


@pytest.mark.parametrize("terminal", [True, False])
def test_text_is_escaped_only_where_a_terminal_shows_it(terminal: bool, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    assert harmless("\x1b[2J") == (r"\x1b[2J" if terminal else "\x1b[2J")


def test_what_the_machine_refuses_is_named_as_far_as_it_is_known(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert re.fullmatch(
        rf"No space left on device; free space: [\d.]+ GiB in {re.escape(str(Path.cwd()))}.*",
        refusal(full),
    )
    named = PermissionError(errno.EACCES, "Permission denied", str(tmp_path))
    assert refusal(named) == f"{tmp_path}: Permission denied"
    assert "None" not in refusal(OSError(errno.EROFS, "Read-only file system"))
