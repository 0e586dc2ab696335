"""Other work on the machine is noticed by its load average, and by the CPU time that it takes."""

from pathlib import Path

import pytest

from specpipe.tune.machine_load import LoadWatch, MachineLoad


@pytest.mark.parametrize(
    ("before", "others", "disturbed"),
    [(0.2, 0.1, False), (1.1, 0.1, True), (0.2, 0.4, True), (0.2, None, False)],
)
def test_a_quiet_machine_has_little_load_before_and_no_other_work(
    before: float, others: float | None, disturbed: bool
) -> None:
    assert MachineLoad(2, before, 3.0, others).disturbed is disturbed


def test_the_time_of_other_processes_is_that_of_all_without_our_own(tmp_path: Path) -> None:
    """Of user, nice, system, idle, iowait, irq, softirq and steal, idle and iowait are no work."""
    stat, seconds = tmp_path / "stat", iter([100.0, 1100.0])
    stat.write_text("cpu 100 0 100 5000 100 0 0 0 0 0\ncpu0 1 1 1 1\n")
    watch = LoadWatch(0.3, lambda: next(seconds), stat).start()
    stat.write_text("cpu 30100 20000 30100 9000 7100 10000 10000 0 0 0\ncpu0 1 1 1 1\n")
    found = watch.read()
    assert found.before == 0.3
    assert found.others == pytest.approx(1.0, abs=0.01)  # 100,000 ticks in 1000 s


def test_a_system_without_counts_gives_none(tmp_path: Path) -> None:
    assert LoadWatch(0.0, _stat=tmp_path / "none").start().read().others is None
