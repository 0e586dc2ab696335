"""`specpipe validate` for a run: find its files and start its servers one after the other."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from specpipe.config.run_config import RunConfig
from specpipe.config.scenarios import SCENARIOS
from specpipe.core.endpoint import Endpoint
from specpipe.plan.gates import require_valid
from specpipe.repository.description import read_endpoint
from specpipe.run.run import Run
from specpipe.run.stages import require_repository
from specpipe.runtime.assembly import load_backend
from specpipe.serve.address import free_address
from specpipe.serve.client import Client, ClientTls
from specpipe.serve.description import require_same_repository
from specpipe.serve.http.base import is_http
from specpipe.serve.start import require_startable, start_repository

if TYPE_CHECKING:
    from specpipe.validate.questions import Questions
    from specpipe.validate.report import Report

Notify = Callable[[str], None]
Progress = Callable[[int, int], None]


def validate_run(
    run: Run,
    url: str | None,
    *,
    tls: ClientTls | None = None,
    key: str | None = None,
    full: bool = False,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> "Report":
    """Validate a run with the server at `url`, or with a temporary server.

    `full` runs all scenarios instead of those of the config. `tls` has the certificates for the
    server at `url`, and `key` the key of its OpenAI API. Writes the report. Raises ConfigError if
    the run is not built, if its prompts or gates cannot be used, or if the server serves another
    repository; and what `validate` and `start_repository` raise.
    """
    from specpipe.validate.questions import load_questions, tokenizer_folder
    from specpipe.validate.report import write_report
    from specpipe.validate.subject import Subject
    from specpipe.validate.validate import validate

    config, workspace = with_scenarios(run.config, full=full), run.workspace
    require_repository(run)
    if url is None:
        require_startable(workspace.repository)
    packaged = read_endpoint(workspace.repository)
    endpoint = _described(url, packaged, tls, key)
    require_valid(config, endpoint)
    if url is not None:
        require_same_repository(url, workspace.repository, tls)
    questions = load_questions(config, tokenizer_folder(workspace.repository, packaged))
    model = run.fetch("target", notify).path
    backend = load_backend(config.engine.backend)
    versions = dict(backend.versions(config.engine.tensorrt_llm))
    subject = Subject(
        config, endpoint, model, questions, versions, url, config.validate.scenarios,
        workspace.repository, notify,
    )  # fmt: skip
    logs = workspace.reports

    def ours() -> AbstractContextManager[Client]:
        if url is not None:
            return running_client(url, packaged, tls, key, questions.count)
        notify("starting a temporary server")
        return _started(workspace.repository, logs / "tritonserver.log", questions, packaged)

    def baseline(plain: Run) -> AbstractContextManager[Client]:
        notify("starting the server of the plain engine (baseline)")
        place = plain.workspace.repository
        log = logs / "tritonserver-baseline.log"
        return _started(place, log, questions, read_endpoint(place))

    plain = run.baseline if subject.plain == "build" else None
    if plain is not None:
        require_repository(plain)
    asked = len(questions.asked) * config.validate.repeats
    notify(f"validating with {asked} prompts: transformers answers them first, then the server")
    theirs = partial(baseline, plain) if plain is not None else None
    report = validate(subject, ours, theirs, progress=progress)
    write_report(report, workspace.reports)
    return report


def with_scenarios(config: RunConfig, *, full: bool) -> RunConfig:
    """Return a config that names all scenarios, if `full`; otherwise the same config."""
    if not full:
        return config
    return replace(config, validate=replace(config.validate, scenarios=tuple(SCENARIOS)))


def running_client(
    url: str,
    packaged: Endpoint,
    tls: ClientTls | None,
    key: str | None,
    count: Callable[[str], int] | None = None,
) -> Client:
    """Return a client of a running server, which describes itself.

    An OpenAI API does not know whether its model speculates; `packaged` tells. `count` counts the
    tokens of answers where the server does not report them.
    """
    given = packaged if is_http(url) else None
    return Client(url, given, count=count, tls=tls, key=key)


def _described(
    url: str | None, packaged: Endpoint, tls: ClientTls | None, key: str | None
) -> Endpoint:
    """Return how the run is called: over HTTP as the server can be, else as it is packaged."""
    if url is None or not is_http(url):
        return packaged
    with running_client(url, packaged, tls, key) as client:
        return client.endpoint


@contextmanager
def _started(
    repository: Path, log: Path, questions: "Questions", packaged: Endpoint
) -> Iterator[Client]:
    """Serve a repository until the block ends; `packaged` describes it."""
    with (
        start_repository(repository, free_address(), log) as server,
        running_client(server.url, packaged, None, None, questions.count) as client,
    ):
        yield client
