"""Gathers the text that the section `train` names, as documents for one target."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specpipe.config.files import require_file
from specpipe.config.run_config import RunConfig
from specpipe.config.training import SelfDistillation
from specpipe.core.errors import ConfigError
from specpipe.serve.client import Client
from specpipe.train.answers import answer_prompts
from specpipe.train.corpus.account import Account
from specpipe.train.corpus.documents import read_documents, record_documents
from specpipe.train.corpus.prompts import (
    Prompt,
    read_file_of_prompts,
    record_prompts,
    without_long,
)
from specpipe.train.corpus.records import dataset_records
from specpipe.train.invented import invent_prompts
from specpipe.train.served_answers import ServedTarget
from specpipe.train.target import Target
from specpipe.train.text import Document, Split, split_documents

Progress = Callable[[int, int], None]
Notify = Callable[[str], None]


@dataclass(frozen=True)
class WrittenText:
    """What the files and datasets of a training hold, before the target answers anything."""

    documents: Sequence[Document]
    prompts: Sequence[Prompt]  # each once
    texts: Account
    asked: Account


def read_text(config: RunConfig, tokenizer: Any) -> WrittenText:
    """Read the files and datasets of a training.

    Raises ConfigError if a file is not usable, or if there is neither text nor a prompt.
    """
    texts, asked = Account("documents"), Account("prompts")
    documents = _read(config, tokenizer, texts)
    how, prompts = config.train.self_distillation, list[Prompt]()
    if how is not None:
        prompts = _once(_written(config, how, asked))
        if not prompts and not how.invented_prompts:
            raise ConfigError(
                f"{config.path}: train.self_distillation has nothing to answer",
                hint="give its prompts, a file, or the number of invented_prompts",
            )
    elif not documents:
        raise _no_text(config)
    return WrittenText(documents, prompts, texts, asked)


def gather_text(
    written: WrittenText,
    config: RunConfig,
    target: Target,
    work: Path,
    *,
    notify: Notify,
    progress: Progress,
) -> Split:
    """Return what was read and the target's own answers, split for training.

    Answers are cached in `work`. Through `notify` it reports what was cut and left out. Raises
    ConfigError if there is no text.
    """
    options, documents = config.train, list(written.documents)
    if options.self_distillation is not None:
        how = options.self_distillation
        asked = _prompts(config, how, target, work, written, progress)
        with _serving(config, how, target) as served:
            answers = answer_prompts(
                target, asked, how, options.seed, work, progress=progress, served=served
            )
        documents += [document.cut(options.sequence_length) for document in answers]
    for line in (*written.texts.sentences(), *written.asked.sentences()):
        notify(line)
    if not documents:
        raise _no_text(config)
    split = split_documents(documents, options.hold_out, options.seed)
    return replace(split, left_out={**written.texts.facts(), **written.asked.facts()})


@contextlib.contextmanager
def _serving(
    config: RunConfig, how: SelfDistillation, target: Target
) -> Iterator[ServedTarget | None]:
    """Yield the server that answers the prompts, if the run names one."""
    if how.endpoint is None:
        yield None
        return
    key = "train.self_distillation.endpoint_key_file"
    file = require_file(how.endpoint_key_file, config, key) if how.endpoint_key_file else None
    secret = file.read_text(encoding="utf-8").strip() if file else None
    with Client(how.endpoint, key=secret) as client:
        yield ServedTarget(client, target, how)


def _no_text(config: RunConfig) -> ConfigError:
    return ConfigError(
        f"{config.path}: no text to train on",
        hint="give train.files, train.datasets or train.self_distillation",
    )


def _read(config: RunConfig, tokenizer: Any, account: Account) -> list[Document]:
    """Return the documents of the files and datasets."""
    options, found = config.train, list[Document]()
    for i, name in enumerate(options.files):
        path = require_file(name, config, f"train.files[{i}]")
        found += read_documents(path, tokenizer, options.sequence_length, account)
    for dataset in options.datasets:
        records = dataset_records(dataset)
        found += record_documents(records, tokenizer, options.sequence_length, account)
    return found


def _prompts(
    config: RunConfig,
    how: SelfDistillation,
    target: Target,
    work: Path,
    written: WrittenText,
    progress: Progress,
) -> list[Prompt]:
    """Return every prompt once: the written ones, then the invented ones; long ones left out."""
    account = written.asked
    invented = invent_prompts(target, how, config.train.seed, work, progress=progress)
    account.read += len(invented)
    prompts = _once([*written.prompts, *invented])
    kept = without_long(prompts, target.tokenizer, _longest(config, how, target), account)
    if not kept:
        raise ConfigError(
            f"{config.path}: no prompt is short enough: {account.reasons()}",
            hint="raise train.sequence_length",
        )
    return kept


def _written(config: RunConfig, how: SelfDistillation, account: Account) -> list[Prompt]:
    key = "train.self_distillation.prompts"
    hint = f"write it with `scripts/training-prompts --out {how.prompts}`, or give another file"
    found: list[Prompt] = []
    if how.prompts:
        found += read_file_of_prompts(require_file(how.prompts, config, key, hint=hint), account)
    for dataset in how.datasets:
        found += record_prompts(dataset_records(dataset), account)
    return found


def _once(prompts: Sequence[Prompt]) -> list[Prompt]:
    return list({json.dumps(prompt, sort_keys=True): prompt for prompt in prompts}.values())


def _longest(config: RunConfig, how: SelfDistillation, target: Target) -> int:
    """Return the most tokens of a prompt: its answer needs room in a document, and in the model.

    A longer prompt would cost the memory of a long prefill, and teach nothing.
    """
    room = getattr(target.model.config, "max_position_embeddings", None)
    document = config.train.sequence_length - 2
    return document if room is None else min(document, room - how.max_tokens)
