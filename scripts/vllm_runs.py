"""One drafter as a run of the CPU engine and as a run of vLLM, for scripts that compare the two."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from specpipe.bench.prompts import prompt_sets
from specpipe.checkpoint.tokenizer_files import open_tokenizer
from specpipe.config.run_config import RunConfig, read_config
from specpipe.core.artifacts import Workspace
from specpipe.run.run import Run
from specpipe.run.stages import build
from specpipe.serve.address import free_address
from specpipe.serve.front_server import read_launch, start_front

KINDS = ("medusa", "eagle3")
SHORT = 16  # output tokens of an answer that is not counted
ROOM = 512  # tokens of the longest prompt
METRICS = "--per-request-spec-decode-metrics"


def run_of(
    backend: str, asked: Any, folder: Path, *, dtype: str = "float32", streams: int = 1
) -> RunConfig:
    """Return a run that drafts chains of `asked.depth` tokens of the same length at every step.

    `asked` has `target`, `drafter`, `kind`, `depth` and `max_tokens`. The config is written to
    `folder`, as a user would write it.
    """
    drafter = str(asked.drafter.resolve())
    named = {"heads": drafter} if asked.kind == "medusa" else {"draft": {"model": drafter}}
    drafting: dict[str, Any] = {
        "method": asked.kind,
        **named,
        "num_draft_tokens": asked.depth,
        "draft_length": "fixed",
    }
    if asked.kind == "medusa":
        drafting["tree"] = [[0] * length for length in range(1, asked.depth + 1)]
    longest = ROOM + asked.max_tokens
    values: dict[str, Any] = {
        "name": f"{asked.kind}-{backend}-{dtype}",
        "target": {"model": str(asked.target)},
        "speculation": drafting,
        "engine": {"backend": backend, "dtype": dtype, "max_input_len": ROOM,
                   "max_seq_len": longest + 2 * asked.depth, "max_batch_size": streams},
    }  # fmt: skip
    if backend == "openvino":
        values["engine"]["prefix_cache"] = False
    file = folder / f"{values['name']}.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return read_config(file)


def prompts_of(config: RunConfig, count: int) -> tuple[Any, list[str]]:
    """Return the target's tokenizer, and specpipe's own prompts in the chat template."""
    run = Run(config, Workspace(Path(), config.name))
    tokenizer = open_tokenizer(run.opened.source(config, "target")).reader
    (found,) = prompt_sets(config, (), count)
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        for text in found.prompts
    ]
    return tokenizer, texts


@contextmanager
def vllm_server(config: RunConfig, folder: Path, metrics: str = "summary") -> Iterator[str]:
    """Build a run for vLLM and serve it until the block ends; yields http://HOST:PORT.

    `metrics` is the value of `--per-request-spec-decode-metrics`.
    """
    workspace = Workspace(folder, config.name)
    build(Run(config, workspace))
    launch = read_launch(workspace.repository)
    assert launch is not None
    argv = with_metrics(launch.argv, metrics)
    log = folder / f"{config.name}.log"
    address = free_address()
    with start_front(workspace.repository, replace(launch, argv=argv), address, log):
        yield f"http://{address.host}:{address.http_port}"


def with_metrics(argv: Sequence[str], metrics: str) -> tuple[str, ...]:
    """Return the command line with another kind of metrics of each answer."""
    if METRICS not in argv:
        return tuple(argv)
    place = argv.index(METRICS) + 1
    return (*argv[:place], metrics, *argv[place + 1 :])


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write results."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
