"""`specpipe validate`: measure, judge, report."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from specpipe.artifacts import Workspace
from specpipe.assembly import load_backend
from specpipe.config import RunConfig, require_file
from specpipe.errors import ConfigError, GateFailed, Unsupported
from specpipe.prompts import read_prompts
from specpipe.repository.models.tokens import load_tokenizer
from specpipe.serve.client import Client
from specpipe.validate.accuracy import Text, read_by_engine, read_by_reference
from specpipe.validate.gates import check_gates_known, judge
from specpipe.validate.measure import measure
from specpipe.validate.metrics import load_metrics
from specpipe.validate.reference import Reference
from specpipe.validate.report import Report, write_report
from specpipe.validate.trials import Arm, Reading

Progress = Callable[[int, int], None]


Prompts = tuple[list[list[int]], tuple[int, ...]]  # as tokens, in the chat template; end tokens


def load_prompts(config: RunConfig, tokenizer_folder: Path) -> Prompts:
    """Return the run's prompts as tokens, in the model's chat template, and the end tokens.

    Raises ConfigError if there are none or one is too long for the engine.
    """
    options = config.validate
    path = require_file(options.prompts, config, "validate.prompts") if options.prompts else None
    tokenizer = load_tokenizer(tokenizer_folder)
    facts = json.loads((tokenizer_folder / "tokenizer_facts.json").read_text())
    texts = read_prompts(path)[: options.num_prompts]
    limit = min(config.engine.max_input_len, config.engine.max_seq_len - options.max_tokens)
    if limit < 1:
        raise ConfigError(
            f"{config.path}: 'validate.max_tokens' is {options.max_tokens}: leaves no "
            f"room for a prompt in engine.max_seq_len {config.engine.max_seq_len}"
        )
    prompts = []
    for number, text in enumerate(texts, 1):
        try:
            asked = facts["chat_prefix"] + text + facts["chat_suffix"]
            prompts.append(tokenizer.encode(asked, limit))
        except ConfigError as error:
            place = f"prompt {number} of {path or 'those that come with specpipe'}"
            raise ConfigError(
                f"{place}: {error}",
                hint="shorten it, or raise engine.max_input_len and max_seq_len and build again",
            ) from error
    return prompts, tokenizer.end_ids


def validate(
    config: RunConfig,
    workspace: Workspace,
    url: str,
    model: Path,
    prompts: Prompts,
    versions: dict[str, str],
    *,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Compare the server at `url` with transformers and write the report into the workspace.

    `prompts` are what `load_prompts` returned. Raises ConfigError for unknown gates, StageFailed if
    the server fails. Whether the gates were met is in the report; `require_passed` raises.
    """
    check_gates_known(config.validate.gates, config.path)
    texts, end_ids = prompts
    speculates = config.speculation.num_draft_tokens > 0
    reference = Reference(model)
    with Client(url) as client:
        trials = measure(
            client,
            reference,
            texts,
            max_tokens=config.validate.max_tokens,
            end_ids=end_ids,
            repeats=config.validate.repeats,
            speculates=speculates,
            progress=progress,
        )
    answered = {t.prompt: (texts[t.prompt], t.tokens) for t in trials.of("reference")}
    readings = read_by_reference(reference, answered)
    del reference  # before the engine is loaded: there may not be room for both
    readings += _read_by_engine(config, workspace, answered)
    trials = replace(trials, readings=tuple(readings))
    metrics = load_metrics()
    figures = {metric.name: metric.compute(trials) for metric in metrics}
    judged: Arm = "speculative" if speculates else "plain"
    gates = judge(config.validate.gates, metrics, figures, judged)
    report = Report(config, len(texts), metrics, figures, trials, gates, versions)
    write_report(report, workspace.reports)
    return report


def _read_by_engine(
    config: RunConfig, workspace: Workspace, texts: Mapping[int, Text]
) -> list[Reading]:
    """Let the run's engine read the texts; nothing if it cannot be driven from here."""
    try:
        engine = load_backend(config.engine.backend).load(workspace.engine("target"))
    except Unsupported:
        return []
    return read_by_engine(engine.runner(), texts)


def require_passed(report: Report) -> None:
    """Raise GateFailed naming every gate that was not met."""
    failed = [str(gate) for gate in report.gates if not gate.passed]
    if failed:
        raise GateFailed("; ".join(failed))
