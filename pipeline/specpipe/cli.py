"""The command line: parse, call one function, print. Data goes to stdout, progress to stderr.

Imports stay inside the commands, so that `--help` is instant and needs neither torch nor openvino.
"""

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from specpipe import __version__
from specpipe.errors import SpecpipeError

if TYPE_CHECKING:
    from specpipe.config import RunConfig
    from specpipe.run import StageName, StageResult
    from specpipe.train.produce import TrainResult

Command = Callable[..., None]

config_option = click.option(
    "--config",
    "config_path",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The run's YAML file, e.g. one of model_configs/*.yaml.",
)
workspace_option = click.option(
    "--workspace",
    default=".",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where engines/, triton_repo/ and reports/ are; the working directory if not given.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


costs_option = click.option(
    "--cost-model",
    "costs",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Price steps by this JSON file, from another machine, not by timing this one.",
)


def port_options(command: Command) -> Command:
    """Add the options that say where a server listens."""
    for flag, default in (("metrics", 8002), ("http", 8000), ("grpc", 8001)):
        command = click.option(
            f"--{flag}-port", default=default, show_default=True, type=click.IntRange(1, 65535)
        )(command)
    return click.option(
        "--host", default="127.0.0.1", show_default=True, help="Listen on this address only."
    )(command)


class _Group(click.Group):
    """Turns our errors into a sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SpecpipeError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="specpipe")
def main() -> None:
    """Turn a Hugging Face checkpoint into a Triton server that decodes speculatively.

    \b
    Start here:  specpipe build --config model_configs/smollm2-135m_prompt-lookup.yaml
    Exit codes:  0 ok, 1 bug, 2 config or usage, 3 unsupported here, 4 stage failed, 5 gate failed
    """


def _build(
    stages: "tuple[StageName, ...]", config_path: Path, workspace: Path, as_json: bool
) -> None:
    from specpipe.run import build

    config, place = _load(config_path, workspace)
    with _progress("") as progress:
        results = build(config, place, stages, notify=_say, progress=progress)
    _print_results(results, as_json)


@main.command()
@config_option
@workspace_option
@json_option
def build(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Run every stage that is not fresh: convert, compile, package.

    \b
    Example:  specpipe build --config model_configs/smollm2-135m_prompt-lookup.yaml
    """
    _build(("convert", "compile", "package"), config_path, workspace, as_json)


@main.command()
@config_option
@workspace_option
@json_option
def convert(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Convert the Hugging Face checkpoints to TensorRT-LLM checkpoints.

    \b
    Example:  specpipe convert --config model_configs/smollm2-135m_prompt-lookup.yaml
    """
    _build(("convert",), config_path, workspace, as_json)


@main.command(name="compile")
@config_option
@workspace_option
@json_option
def compile_(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Compile the converted checkpoints into engines.

    \b
    Example:  specpipe compile --config model_configs/smollm2-135m_prompt-lookup.yaml
    """
    _build(("compile",), config_path, workspace, as_json)


@main.command()
@config_option
@workspace_option
@json_option
def package(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Write the Triton model repository around the engines.

    \b
    Example:  specpipe package --config model_configs/smollm2-135m_prompt-lookup.yaml
    """
    _build(("package",), config_path, workspace, as_json)


@main.command()
@config_option
@workspace_option
@json_option
def status(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Say which artifacts are fresh, and why the rest is not.

    \b
    Example:  specpipe status --config model_configs/smollm2-135m_prompt-lookup.yaml
    """
    from specpipe.run import status as run_status

    _print_results(run_status(*_load(config_path, workspace)), as_json)


@main.command()
@config_option
@workspace_option
@json_option
def plan(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Show what would be built, whether it fits, and every reason why not; reads no weights.

    \b
    Example:  specpipe plan --config model_configs/llama70b_draft7b.yaml
    """
    from specpipe.planning import make_plan
    from specpipe.present import plan_json, plan_text

    made = make_plan(*_load(config_path, workspace))
    click.echo(json.dumps(plan_json(made), indent=2) if as_json else plan_text(made))
    if made.rejections:
        sys.exit(3)


@main.command()
@config_option
@workspace_option
@json_option
@port_options
def serve(
    config_path: Path,
    workspace: Path,
    as_json: bool,
    host: str,
    grpc_port: int,
    http_port: int,
    metrics_port: int,
) -> None:
    """Serve the packaged repository with Triton until Ctrl-C.

    Prints one JSON line on stdout when every model is ready.

    \b
    Example:  specpipe serve --config model_configs/smollm2-135m_prompt-lookup.yaml
    """
    from specpipe.run import require_repository
    from specpipe.serve.tritonserver import Address, start_server

    config, place = _load(config_path, workspace)
    require_repository(config, place)
    address = Address(host, grpc_port, http_port, metrics_port)
    log = place.reports / "tritonserver.log"
    stop = _stop_event()
    with start_server(place.repository, address, log) as endpoint:
        ready = {
            "ready": True,
            "grpc": address.grpc,
            "http": address.http,
            "metrics": address.metrics,
            "pid": endpoint.process.pid,
            "log": str(log),
        }
        click.echo(json.dumps(ready))
        while endpoint.is_alive() and not stop.wait(0.2):
            pass
        died = not endpoint.is_alive()
    if died:
        from specpipe.errors import StageFailed

        raise StageFailed("serve: tritonserver ended by itself", hint=f"its output is in {log}")
    _say("stopped")


@main.command()
@click.argument("prompt", required=False)
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Use this run's chat template; without it the prompt is sent as it is.",
)
@workspace_option
@click.option("--url", default="127.0.0.1:8001", show_default=True, help="The gRPC endpoint.")
@click.option(
    "--model",
    default="tensorrt_llm_bls",
    show_default=True,
    type=click.Choice(["tensorrt_llm_bls", "ensemble"]),
)
@click.option("--stream", is_flag=True, help="Print the answer as it arrives.")
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(min=1))
@click.option("--temperature", type=float)
@click.option("--top-k", type=int, help="Sample from the k most likely tokens.")
@click.option("--top-p", type=float, help="Sample from the most likely tokens of this total mass.")
@click.option("--seed", type=click.IntRange(min=0))
@click.option("--stop", "stop_words", multiple=True, help="End after this text; may be repeated.")
@click.option("--num-draft-tokens", type=click.IntRange(min=0), help="0 turns speculation off.")
@json_option
def generate(
    prompt: str | None,
    config_path: Path | None,
    workspace: Path,
    url: str,
    model: str,
    stream: bool,
    max_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    stop_words: tuple[str, ...],
    num_draft_tokens: int | None,
    as_json: bool,
) -> None:
    """Send PROMPT (or stdin) to a running server and print the answer.

    Without --top-k or --top-p the most likely tokens are taken.

    \b
    Example:  specpipe generate --config F --stream "What is the capital of France?"
    """
    from specpipe.present import generation_json, generation_text
    from specpipe.serve.client import Client, Options, collect

    text = prompt if prompt is not None else sys.stdin.read()
    if config_path is not None:
        text = _in_template(text, config_path, workspace)
    options = Options(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_words=stop_words,
        num_draft_tokens=num_draft_tokens,
    )
    with Client(url) as client:
        if not stream:
            answer = client.generate(text, options, model=model)
        else:
            answer = collect(_echo(client.stream(text, options, model=model), quiet=as_json))
    if as_json:
        click.echo(json.dumps(generation_json(answer)))
        return
    click.echo("" if stream else answer.text)
    _say(generation_text(answer))


@main.command()
@config_option
@workspace_option
@click.option("--url", help="A server's gRPC endpoint; without it, one is started for the time.")
@json_option
def validate(config_path: Path, workspace: Path, url: str | None, as_json: bool) -> None:
    """Compare the server with transformers: same tokens? how much faster? Writes a report.

    Exits with 5 if a gate of the config is not met.

    \b
    Example:  specpipe validate --config model_configs/smollm2-135m_prompt-lookup.yaml
    """
    from specpipe.run import validate_run
    from specpipe.validate.report import to_json, to_markdown
    from specpipe.validate.validate import require_passed

    config, place = _load(config_path, workspace)
    with _progress("prompts") as progress:
        report = validate_run(config, place, url, notify=_say, progress=progress)
    click.echo(json.dumps(to_json(report)) if as_json else to_markdown(report), nl=as_json)
    _say(f"report: {place.reports / 'report.html'}")
    require_passed(report)


@main.group()
def train() -> None:
    """Train Medusa heads or a draft model for a run's target.

    \b
    Example:  specpipe train medusa --config model_configs/smollm2-135m_train-medusa.yaml
    """


@train.command()
@config_option
@workspace_option
@json_option
def medusa(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Train Medusa heads on text or on the target's own answers; resumes where it was killed.

    \b
    Example:  specpipe train medusa --config model_configs/smollm2-135m_train-medusa.yaml
    """
    from specpipe.train.make_heads import train_medusa

    _train(train_medusa, config_path, workspace, as_json)


@train.command()
@config_option
@workspace_option
@json_option
def draft(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Distil the target into a copy of itself with fewer layers; resumes where it was killed.

    \b
    Example:  specpipe train draft --config model_configs/smollm2-135m_train-medusa.yaml
    """
    from specpipe.train.make_draft import train_draft

    _train(train_draft, config_path, workspace, as_json)


def _train(
    make: "Callable[..., TrainResult]", config_path: Path, workspace: Path, as_json: bool
) -> None:
    config, place = _load(config_path, workspace)
    with _progress("") as progress:
        result = make(config, place, notify=_say, progress=progress)
    text = (result.path / "report.json").read_text()
    summary = {**_plain(result), "report": json.loads(text)}
    click.echo(json.dumps(summary, indent=2) if as_json else str(result.path))
    for name, value in summary["report"]["after"].items():
        _say(f"{name}: {summary['report']['before'][name]:.3f} -> {value:.3f} on the hold-out")
    _say(f"{'fresh' if result.fresh else 'written'}; report: {result.path / 'report.html'}")


@main.command()
@config_option
@workspace_option
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the run's YAML with the chosen settings here; without it nothing is written.",
)
@costs_option
@json_option
def tune(
    config_path: Path, workspace: Path, out: Path | None, costs: Path | None, as_json: bool
) -> None:
    """Choose the settings of the run's method for this machine and the run's prompts.

    Answers to the prompts of `validate:` are recorded once; every setting is then replayed against
    them and priced with the step costs measured here; the best one is run for real.

    \b
    Example:  specpipe tune --config model_configs/smollm2-135m_prompt-lookup.yaml --out tuned.yaml
    """
    from specpipe.present import tuning_json, tuning_text
    from specpipe.run import tune_run
    from specpipe.tune.settings import write_settings

    config, place = _load(config_path, workspace)
    with _progress("prompts") as progress:
        tuning = tune_run(config, place, costs=costs, notify=_say, progress=progress)
    click.echo(json.dumps(tuning_json(tuning), indent=2) if as_json else tuning_text(tuning))
    if out is not None:
        write_settings(config_path, out, tuning)
        _say(f"wrote {out}")


@main.command()
@config_option
@workspace_option
@costs_option
@json_option
def recommend(config_path: Path, workspace: Path, costs: Path | None, as_json: bool) -> None:
    """Compare the speculation methods that the run's models allow, each at its best.

    Prompt lookup and lookahead need nothing; a draft or heads are tried if the run names them.

    \b
    Example:  specpipe recommend --config model_configs/smollm2-135m_medusa.yaml
    """
    from specpipe.present import prediction_json, predictions_text
    from specpipe.run import recommend_run

    config, place = _load(config_path, workspace)
    with _progress("prompts") as progress:
        found = recommend_run(config, place, costs=costs, notify=_say, progress=progress)
    as_text = json.dumps([prediction_json(p) for p in found], indent=2)
    click.echo(as_text if as_json else predictions_text(found))


@main.command()
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also say what this run misses.",
)
@json_option
def doctor(config_path: Path | None, as_json: bool) -> None:
    """Say what this machine has, and what a run would miss.

    \b
    Example:  specpipe doctor --config model_configs/smollm2-135m_prompt-lookup.yaml
    """
    from specpipe.doctor import examine
    from specpipe.present import findings_text

    config = _load(config_path, Path())[0] if config_path else None
    findings = examine(config)
    as_text = json.dumps(_plain(findings), indent=2) if as_json else findings_text(findings)
    click.echo(as_text)
    if any(finding.problem for finding in findings):
        sys.exit(3)


def _load(config_path: Path, workspace: Path) -> "tuple[RunConfig, Any]":
    from specpipe.artifacts import Workspace
    from specpipe.config import read_config

    config = read_config(config_path)
    return config, Workspace(workspace, config.name)


def _in_template(text: str, config_path: Path, workspace: Path) -> str:
    from specpipe.run import chat_template

    prefix, suffix = chat_template(*_load(config_path, workspace))
    return prefix + text + suffix


def _echo(pieces: Iterator[Any], *, quiet: bool) -> Iterator[Any]:
    for piece in pieces:
        if not quiet:
            click.echo(piece.text, nl=False)
        yield piece


def _say(text: str) -> None:
    click.echo(text, err=True)


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that draws a bar on stderr; a new total begins a new bar."""
    with contextlib.ExitStack() as stack:
        bars: dict[int, Any] = {}

        def update(done: int, total: int) -> None:
            if total not in bars or done <= bars[total].pos:
                stack.close()
                bars[total] = stack.enter_context(
                    click.progressbar(
                        length=total, file=sys.stderr, label=what, show_eta=True, width=30
                    )
                )
            bars[total].update(done - bars[total].pos)

        yield update


def _stop_event() -> threading.Event:
    """Return an event that Ctrl-C and a polite kill set."""
    event = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        event.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return event


def _print_results(results: "list[StageResult]", as_json: bool) -> None:
    from specpipe.present import results_text

    click.echo(json.dumps(_plain(results), indent=2) if as_json else results_text(results))


def _plain(value: Any) -> Any:
    """Turn records and paths into what JSON knows."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
