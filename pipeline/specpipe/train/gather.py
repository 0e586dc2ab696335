"""Gathers the text that the section `train` names, as documents for one target."""

from collections.abc import Callable
from pathlib import Path

from specpipe.config.run_config import RunConfig, require_file
from specpipe.config.training import SelfDistillation
from specpipe.core.errors import ConfigError
from specpipe.core.prompts import read_prompts
from specpipe.train.answers import answer_prompts
from specpipe.train.invented import invent_prompts
from specpipe.train.target import Target
from specpipe.train.text import Document, Split, read_documents, split_documents

Progress = Callable[[int, int], None]


def gather_text(config: RunConfig, target: Target, work: Path, *, progress: Progress) -> Split:
    """Return the text of the files and the target's own answers, split for training.

    Answers are cached in `work`. Raises ConfigError if there is no text or a file is not usable.
    """
    options = config.train
    documents: list[Document] = []
    for i, name in enumerate(options.files):
        file = require_file(name, config, f"train.files[{i}]")
        documents += read_documents(file, target.tokenizer, options.sequence_length)
    if options.self_distillation is not None:
        how = options.self_distillation
        prompts = _prompts(config, how, target, work, progress)
        answers = answer_prompts(target, prompts, how, options.seed, work, progress=progress)
        documents += [_cut(document, options.sequence_length) for document in answers]
    if not documents:
        raise ConfigError(
            f"{config.path}: no text to train on",
            hint="give train.files or train.self_distillation",
        )
    return split_documents(documents, options.hold_out, options.seed)


def _prompts(
    config: RunConfig, how: SelfDistillation, target: Target, work: Path, progress: Progress
) -> list[str]:
    key = "train.self_distillation.prompts"
    hint = f"write it with `scripts/training-prompts --out {how.prompts}`, or give another file"
    file = require_file(how.prompts, config, key, hint=hint) if how.prompts else None
    written = read_prompts(file) if file else []
    invented = invent_prompts(target, how, config.train.seed, work, progress=progress)
    if not written and not invented:
        raise ConfigError(
            f"{config.path}: train.self_distillation has nothing to answer",
            hint="give its prompts, a file, or the number of invented_prompts",
        )
    return list(dict.fromkeys([*written, *invented]))


def _cut(document: Document, length: int) -> Document:
    return Document(document.tokens[:length], document.learned[:length])
