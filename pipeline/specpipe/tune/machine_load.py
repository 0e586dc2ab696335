"""The load of this machine before and while times were measured."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
BUSY_BEFORE = 0.5  # of the CPUs, as load average
BUSY_OTHERS = 0.15  # of the CPUs, used by other processes during the measurement
_TICKS_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class MachineLoad:
    """Load averages of one minute, and the CPUs that other processes used meanwhile."""

    cpus: int
    before: float
    during: float  # at the end of the measurement; it includes this process
    others: float | None  # CPUs; None: this system does not count them

    @property
    def disturbed(self) -> bool:
        """Whether other work may have changed the measured times."""
        busy = self.others is not None and self.others > BUSY_OTHERS * self.cpus
        return busy or self.before > BUSY_BEFORE * self.cpus


@dataclass
class LoadWatch:
    """Observes the machine from `start` on; `before` was read when it was made."""

    before: float
    _clock: Callable[[], float] = time.monotonic
    _stat: Path = STAT
    _began: tuple[float, float, float] | None = None

    def start(self) -> "LoadWatch":
        """Begin to count CPU time; what ran before is not the measurement."""
        self._began = self._counts()
        return self

    def read(self) -> MachineLoad:
        """Return the load between `start` and now."""
        cpus, others = os.cpu_count() or 1, None
        if self._began is not None:
            now_s, all_s, own_s = self._counts()
            began_s, all_before_s, own_before_s = self._began
            spent_s = (all_s - all_before_s) - (own_s - own_before_s)
            if all_s and now_s > began_s:
                others = max(0.0, spent_s / (now_s - began_s))
        return MachineLoad(cpus, self.before, os.getloadavg()[0], others)

    def _counts(self) -> tuple[float, float, float]:
        """Return the seconds now, those of all CPUs at work, and those of this process."""
        own = os.times()
        own_s = own.user + own.system + own.children_user + own.children_system
        return self._clock(), _busy_s(self._stat), own_s


def watch() -> LoadWatch:
    """Return a watch that has read the load average."""
    return LoadWatch(os.getloadavg()[0])


def _busy_s(stat: Path) -> float:
    """Return the seconds of all CPUs at work since the start of the machine; 0: not counted.

    The first line has user, nice, system, idle, iowait, irq, softirq, steal (proc(5)).
    """
    try:
        ticks = [int(word) for word in stat.read_text(encoding="ascii").split("\n")[0].split()[1:9]]
    except (OSError, ValueError):
        return 0.0
    return (sum(ticks) - sum(ticks[3:5])) / _TICKS_S
