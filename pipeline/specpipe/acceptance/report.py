"""The report of an acceptance: a folder with the output of every step, and an archive of it."""

import contextlib
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from specpipe.acceptance.session import ConfigResult
from specpipe.core.errors import ConfigError

RESULTS = "results.json"  # a folder with this file is a report and may be replaced
_TIMEOUT_S = 120
_LARGEST = 2**26  # bytes of a file that is copied
_COPIED = frozenset(
    {
        "specpipe.json", "config.json", "config.pbtxt", "model.yaml", "report.json", "report.md",
        "report.html",
    }
)  # fmt: skip


def prepare_report(folder: Path) -> None:
    """Remove an older report; raises ConfigError if the folder has other files."""
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / RESULTS).is_file()):
        raise ConfigError(
            f"{folder} is not a report of `specpipe acceptance`", hint="choose another --report"
        )
    shutil.rmtree(folder)


def write_machine(report: Path) -> None:
    """Describe the machine: GPUs, packages and the commit."""
    report.mkdir(parents=True, exist_ok=True)
    for name, command in (
        ("nvidia-smi.txt", ["nvidia-smi"]),
        ("nvidia-smi-topology.txt", ["nvidia-smi", "topo", "-m"]),
        ("packages.txt", [sys.executable, "-m", "pip", "list"]),
        ("doctor.json", [sys.executable, "-m", "specpipe", "doctor", "--json"]),
        ("commit.txt", ["git", "log", "-1", "--format=%H %s"]),
    ):
        with (report / name).open("w", encoding="utf-8") as file, contextlib.suppress(OSError):
            subprocess.run(command, stdout=file, stderr=file, timeout=_TIMEOUT_S, check=False)


def collect(report: Path, workspace: Path, case: ConfigResult) -> None:
    """Copy configs, manifests, logs and reports of the run; no weights and no engines."""
    target = report / case.name / "artifacts"
    places = [workspace / top / case.name for top in ("engines", "triton_repo", "reports")]
    for file in (f for place in places if place.is_dir() for f in place.rglob("*")):
        wanted = file.name in _COPIED or file.suffix == ".log"
        if wanted and file.is_file() and file.stat().st_size < _LARGEST:
            copy = target / file.relative_to(workspace)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def results(cases: Sequence[ConfigResult]) -> list[dict[str, object]]:
    """Return the results of all configs as plain values."""
    return [
        {
            "config": str(case.config),
            "name": case.name,
            "steps": [asdict(outcome) for outcome in case.steps],
        }
        for case in cases
    ]


def write_report(report: Path, cases: Sequence[ConfigResult]) -> tuple[Path, Path]:
    """Write summary.md, results.json and the archive; return the summary and the archive."""
    report.mkdir(parents=True, exist_ok=True)
    (report / RESULTS).write_text(json.dumps(results(cases), indent=1) + "\n", encoding="utf-8")
    summary = report / "summary.md"
    summary.write_text(f"# GPU acceptance\n\n{summary_table(cases)}\n", encoding="utf-8")
    archive = report.with_name(report.name + ".tar.gz")
    with tarfile.open(archive, "w:gz", encoding="utf-8") as tar:
        tar.add(report, report.name)
    return summary, archive


def summary_table(cases: Sequence[ConfigResult]) -> str:
    """Return a Markdown table with a line for every step."""
    lines = ["| config | step | state | seconds | note |", "|-|-|-|-|-|"]
    lines += [
        f"| {case.name} | {o.step} | {o.state} | {o.seconds:.1f} | {o.note.replace('|', '/')} |"
        for case in cases
        for o in case.steps
    ]
    return "\n".join(lines)
