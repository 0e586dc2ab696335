"""Runs lm-evaluation-harness as a program, and reads the samples that it logs."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from specpipe.config.validation import TaskOptions
from specpipe.core.errors import StageFailed, Unsupported
from specpipe.core.processes import last_lines

FLAGS = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HOME", "HOME", "PATH", "LANG")
CORRECT = ("exact_match", "acc")  # metrics that are 0 or 1 for a document, the first one wins
_FIND = "import importlib.util, sys; sys.exit(importlib.util.find_spec('lm_eval') is None)"
Samples = dict[str, dict[tuple[int, str], bool]]  # task -> (document, filter) -> correct


@dataclass(frozen=True)
class Evaluation:
    """What one model scored: every document, and the harness's own figures by task."""

    samples: Samples
    figures: Mapping[str, Mapping[str, object]]


def interpreter(options: TaskOptions) -> str:
    """Return the Python that has `lm_eval`; raises Unsupported if it has none."""
    python = str(Path(options.python).expanduser()) if options.python else sys.executable
    found = subprocess.run(
        [python, "-c", _FIND], capture_output=True, check=False, env=_environment()
    )
    if found.returncode:
        raise Unsupported(
            f"{python} has no lm_eval, which the scenario `tasks` runs",
            hint="install lm_eval[api,hf] there, or set validate.tasks.python",
        )
    return python


def evaluate(
    options: TaskOptions, model: str, arguments: Mapping[str, str], folder: Path
) -> Evaluation:
    """Run the tasks with one of the harness's models; its files and log are in `folder`.

    Paths of data in your own task files are relative to their folder.

    Raises Unsupported without `lm_eval`, StageFailed with the end of the log if it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(options.include).expanduser().resolve() if options.include else None
    command = [
        interpreter(options), "-m", "lm_eval", "--model", model,
        "--model_args", ",".join(f"{k}={v}" for k, v in arguments.items()),
        "--tasks", ",".join(options.names), "--output_path", str(folder), "--log_samples",
        *_words("--include_path", place), *_words("--limit", options.limit),
        *_words("--num_fewshot", options.num_fewshot), "--device", "cpu",
    ]  # fmt: skip
    log = folder / "lm_eval.log"
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, check=False, env=_environment(),
            cwd=place,
        )  # fmt: skip
    if done.returncode:
        end = "\n".join(last_lines(log, 8))
        raise StageFailed(f"lm_eval failed with {done.returncode}; its log {log} ends:\n{end}")
    return Evaluation(dict(_samples(folder)), _figures(folder))


def _words(flag: str, value: object) -> list[str]:
    return [] if value is None else [flag, str(value)]


def _environment() -> dict[str, str]:
    """Return an environment in which another Python finds its own packages only."""
    kept = {name: value for name, value in os.environ.items() if name in FLAGS}
    return {**kept, "OPENAI_API_KEY": "none", "TOKENIZERS_PARALLELISM": "false"}


def _samples(folder: Path) -> Iterator[tuple[str, dict[tuple[int, str], bool]]]:
    for file in sorted(folder.rglob("samples_*.jsonl")):
        task = file.name.removeprefix("samples_").rpartition("_")[0]
        yield task, dict(_correct(file.read_text(encoding="utf-8").split("\n")))


def _correct(lines: Sequence[str]) -> Iterator[tuple[tuple[int, str], bool]]:
    """Yield whether each document is right, if a metric of the task is 0 or 1."""
    for line in filter(str.strip, lines):
        values = json.loads(line)
        name = next((name for name in CORRECT if values.get(name) in (0, 1)), None)
        if name is not None:
            yield (int(values["doc_id"]), str(values.get("filter", "none"))), bool(values[name])


def _figures(folder: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for file in sorted(folder.rglob("results_*.json")):
        found |= json.loads(file.read_text(encoding="utf-8"))["results"]
    return found
