"""Commands ended by a signal, or by a closed output pipe, leave nothing behind."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from specpipe.cli.ending import terminable
from tests.helpers.processes import is_running
from tests.helpers.waiting import until

# The command with its work replaced: it holds a temporary folder and a child program.
HOLDS = """
import signal, sys, tempfile
from specpipe.cli import main
from specpipe.core.processes import Program, run_logged
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores both
signal.signal(signal.SIGHUP, signal.SIG_DFL)
names = {words!r}.split()
command = main.commands[names[0]]
for name in names[1:]:
    command = command.commands[name]
command.params = []

def hold():
    with tempfile.TemporaryDirectory(dir="scratch") as folder:
        script = f"echo $$ > child.tmp; mv child.tmp child; exec sleep 600"
        run_logged(Program(("sh", "-c", script)), Path("log"))

command.callback = hold
main(names)
"""


@pytest.mark.parametrize(
    ("words", "number"),
    [
        *((words, signal.SIGTERM) for words in ("build", "validate", "tune", "train medusa")),
        ("build", signal.SIGINT),
        ("build", signal.SIGHUP),
    ],
)
def test_a_signal_ends_a_command_and_nothing_of_it_is_left(
    words: str, number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    command = [sys.executable, "-c", HOLDS.format(words=words)]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        until(lambda: (tmp_path / "child").exists() or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        child = int((tmp_path / "child").read_text())
        process.send_signal(number)
        told = process.stderr.read()
        assert process.wait(30) == 128 + number, told
    assert "interrupted" in told and "Traceback" not in told
    assert not is_running(child)
    assert not list((tmp_path / "scratch").iterdir())


TWICE = """
import signal
from specpipe.cli.ending import Terminated, terminable

with terminable():
    try:
        signal.raise_signal(signal.SIGTERM)
    except Terminated:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        print("cleaned up")
"""


def test_a_second_signal_does_not_interrupt_the_cleaning_up() -> None:
    """In a process of its own, since a mistake ends the process that it is in."""
    told = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=True)
    assert told.stdout == "cleaned up\n"


def test_the_handlers_of_the_caller_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with terminable():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_a_command_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminable():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    "words", ["build --help", "plan --config model_configs/llama8b_lookahead.yaml"]
)
def test_a_reader_that_left_ends_a_command_quietly(words: str) -> None:
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-m", "specpipe", *words.split()],
        cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout and process.stderr
        process.stdout.close()  # as `| true` does
        told = process.stderr.read()
        assert process.wait(60) == 141, told
    assert "Traceback" not in told and "BrokenPipe" not in told and "Exception" not in told
