"""Child programs: what they say is kept, signs of life come, and nothing of them outlives us."""

import subprocess
from pathlib import Path

import pytest

from specpipe.core.processes import Program, ended_within, last_lines, run_logged
from tests.helpers.processes import is_running
from tests.helpers.waiting import until


class Interrupt(BaseException):
    """Stands for Ctrl-C."""


def shell(script: str, abort: tuple[str, ...] = ()) -> Program:
    return Program(("sh", "-c", script), abort)


def test_output_is_kept_and_the_exit_code_told(tmp_path: Path) -> None:
    assert run_logged(shell("echo out; echo err >&2; exit 3"), tmp_path / "deep/log") == 3
    assert last_lines(tmp_path / "deep/log") == ["out", "err"]
    assert run_logged(shell("kill -9 $$"), tmp_path / "log") == -9


def test_a_long_program_gives_signs_of_life(tmp_path: Path) -> None:
    beats: list[float] = []

    def beat(seconds: float) -> None:
        beats.append(seconds)
        if len(beats) == 2:
            (tmp_path / "seen").touch()

    script = f"until test -e {tmp_path}/seen; do sleep 0.01; done"
    run_logged(shell(script), tmp_path / "log", on_heartbeat=beat, heartbeat_s=0.05)
    assert len(beats) >= 2 and beats == sorted(beats)


def test_an_interrupted_wait_ends_the_whole_group_and_aborts_the_rest(tmp_path: Path) -> None:
    def interrupt(seconds: float) -> None:
        if (tmp_path / "child").exists():
            raise Interrupt

    abort = ("touch", str(tmp_path / "aborted"))
    launch = shell(f"sleep 600 & echo $! > {tmp_path}/child; wait", abort)
    with pytest.raises(Interrupt):
        run_logged(launch, tmp_path / "log", on_heartbeat=interrupt, heartbeat_s=0.05)
    process = int((tmp_path / "child").read_text())
    until(lambda: not is_running(process))
    assert (tmp_path / "aborted").exists()


def test_a_program_that_ends_well_is_not_aborted_and_leaves_no_workers(tmp_path: Path) -> None:
    abort = ("touch", str(tmp_path / "aborted"))
    script = f"sleep 600 & echo $! > {tmp_path}/worker"
    assert run_logged(shell(script, abort), tmp_path / "log") == 0
    process = int((tmp_path / "worker").read_text())
    until(lambda: not is_running(process))
    assert not (tmp_path / "aborted").exists()


def test_a_missing_program_and_a_missing_log_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run_logged(Program(("no-such-program",)), tmp_path / "log")
    assert last_lines(tmp_path / "nothing") == []


def test_last_lines_are_few_and_not_empty(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a\n\n" + "\n".join(map(str, range(20))) + "\n\n")
    assert last_lines(tmp_path / "log", 3) == ["17", "18", "19"]


def test_the_end_of_a_child_is_seen_although_an_exception_has_left_its_wait_locked() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        lock = vars(process)["_waitpid_lock"]
        lock.acquire()  # as does Popen.wait, just before the handler of a signal raises
        try:
            assert not ended_within(process, 0.1)
            process.kill()
            assert process.poll() is None and ended_within(process, 60)
        finally:
            lock.release()
        assert process.returncode == -9


def test_a_child_whose_exit_code_was_taken_has_ended() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
        process.returncode = None
        assert ended_within(process) and process.returncode == 0
