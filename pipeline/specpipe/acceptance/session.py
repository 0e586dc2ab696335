"""The records of an acceptance, and how one step runs as a child process."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from specpipe.core.processes import die_with_parent, ended_within

State = Literal["ok", "failed", "skipped"]
STEPS = ("doctor", "plan", "build", "serve", "validate", "bench")
FATAL = ("plan", "build", "serve")  # without them the other steps of a config are skipped
GATE_FAILED = 5
STOP_S = 60.0
POLL_S = 0.5


@dataclass(frozen=True)
class Outcome:
    """The result of one step of one config."""

    step: str
    state: State
    seconds: float = 0.0
    note: str = ""


@dataclass
class ConfigResult:
    """One config and the results of its steps."""

    config: Path
    name: str
    steps: list[Outcome] = field(default_factory=list)

    @property
    def broken(self) -> str | None:
        """The failed step that ends this config; None if there is none."""
        bad = (o.step for o in self.steps if o.state == "failed" and o.step in FATAL)
        return next(bad, None)


@dataclass(frozen=True)
class Session:
    """The folders of an acceptance, and the limits of its steps."""

    report: Path
    workspace: Path
    timeout_s: float = 7200.0  # of each step
    in_container: bool = False  # whether `build` runs the compiler in NVIDIA's container

    def output(self, case: ConfigResult, step: str) -> Path:
        """Return the file for the output of a step; makes its folder."""
        file = self.report / case.name / f"{step}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def run(self, case: ConfigResult, step: str, words: Sequence[str]) -> Outcome:
        """Run a command of specpipe with its output in the report; a timeout is a failure."""
        out, began = self.output(case, step), time.monotonic()
        with started(words, out) as process:
            try:
                code = process.wait(self.timeout_s)
            except subprocess.TimeoutExpired:
                code = None
        seconds = time.monotonic() - began
        if code == 0:
            return Outcome(step, "ok", seconds)
        if code == GATE_FAILED and step == "validate":
            return Outcome(step, "failed", seconds, "a gate was not met")
        why = f"exit code {code}" if code is not None else f"stopped after {self.timeout_s:.0f} s"
        return Outcome(step, "failed", seconds, f"{why}: {last_line(out)}")

    @contextlib.contextmanager
    def serve(self, case: ConfigResult, words: Sequence[str]) -> Iterator[Outcome]:
        """Start a server, yield the result once it is ready or has ended; stop it after that."""
        out, began = self.output(case, "serve"), time.monotonic()
        limit = ("--timeout", str(int(self.timeout_s)), "--log-to-stderr")
        with started((*words, *limit), out) as process:
            while process.poll() is None and '"ready": true' not in out.read_text(
                encoding="utf-8", errors="replace"
            ):
                time.sleep(POLL_S)
            seconds = time.monotonic() - began
            if process.poll() is None:
                yield Outcome("serve", "ok", seconds)
            else:
                yield Outcome("serve", "failed", seconds, last_line(out))


@contextlib.contextmanager
def started(words: Sequence[str], out: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command of specpipe with its output in a file, until the block ends.

    Models are not looked up on the Hugging Face hub, unless HF_HUB_OFFLINE is set otherwise.
    """
    environment = {"HF_HUB_OFFLINE": "1", **os.environ}
    command = [sys.executable, "-m", "specpipe", *words]
    with out.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            env=environment,
            preexec_fn=die_with_parent,
        )
        try:
            yield process
        finally:
            stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Interrupt a child process; kill it if it still runs after a minute."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        ended_within(process, STOP_S)
        process.kill()
    ended_within(process)


def last_line(file: Path) -> str:
    """Return the most likely error line of an output."""
    lines = [
        line.strip()
        for line in file.read_text(errors="replace", encoding="utf-8").splitlines()
        if line.strip()
    ]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["no output"])[-1][:300]
