"""How much text a training has, counted or bounded, before the target has answered its prompts."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from specpipe.config.files import find_file
from specpipe.config.run_config import RunConfig
from specpipe.config.training import Dataset, SelfDistillation
from specpipe.train.corpus.files import files_of
from specpipe.train.corpus.prompts import Prompt, prompt_tokens
from specpipe.train.invented import MAX_TOKENS
from specpipe.train.text import Document

SAMPLE = 200  # prompts whose length is counted
BYTES_A_TOKEN = 4  # of files that no tokenizer has read
_SLICE = re.compile(r"\w+\[(\d*):(\d+)\]")


@dataclass(frozen=True)
class Amounts:
    """The text of a training."""

    documents: int = 0
    tokens: int = 0
    positions: int = 0  # at which a drafter learns
    prompts: int = 0  # that the target answers
    invented: int = 0  # that it makes up before
    prompt_length: int = 0  # tokens of a usual prompt
    longest_prompt: int = 0
    is_exact: bool = True
    remarks: tuple[str, ...] = ()

    def plus(self, other: "Amounts") -> "Amounts":
        """Return both together; the prompt lengths are the greater ones."""
        return Amounts(
            self.documents + other.documents,
            self.tokens + other.tokens,
            self.positions + other.positions,
            self.prompts + other.prompts,
            self.invented + other.invented,
            max(self.prompt_length, other.prompt_length),
            max(self.longest_prompt, other.longest_prompt),
            self.is_exact and other.is_exact,
            (*self.remarks, *other.remarks),
        )

    def times(self, share: float) -> "Amounts":
        """Return a share of the text."""
        counts = {name: round(getattr(self, name) * share) for name in _COUNTS}
        return replace(self, **counts)


_COUNTS = ("documents", "tokens", "positions", "prompts", "invented")


def amounts_of(documents: Sequence[Document]) -> Amounts:
    """Count documents that were read."""
    positions = sum(int((d.learned[1:-1] & d.learned[2:]).sum()) for d in documents)
    return Amounts(len(documents), sum(map(len, documents)), positions)


def answered(
    config: RunConfig, how: SelfDistillation, prompts: Sequence[Prompt], tokenizer: Any
) -> Amounts:
    """Bound the answers to prompts: each is as long as `max_tokens`.

    Without a tokenizer, prompts have the length of an invented one.
    """
    lengths = [MAX_TOKENS] * bool(how.invented_prompts)
    if prompts and tokenizer is not None:
        chosen = np.linspace(0, len(prompts) - 1, min(SAMPLE, len(prompts))).astype(int)
        lengths += [len(prompt_tokens(prompts[i], tokenizer)) for i in chosen]
    room = config.train.sequence_length - 2  # gathering leaves longer prompts out
    known = [length for length in lengths if length <= room] or [min(MAX_TOKENS, room)]
    count = len(prompts) + how.invented_prompts
    usual = round(sum(known) / len(known))
    return replace(
        _answers(config, how, count, usual), invented=how.invented_prompts,
        longest_prompt=max(known),
    )  # fmt: skip


def _answers(config: RunConfig, how: SelfDistillation, count: int, prompt: int) -> Amounts:
    whole = min(config.train.sequence_length, prompt + how.max_tokens)
    answer = max(0, min(how.max_tokens, config.train.sequence_length - prompt) - 1)
    return Amounts(count, count * whole, count * answer, count, 0, prompt, prompt, not count)


def unread(config: RunConfig) -> Amounts:
    """Bound the text of datasets that are not fetched: every row fills a sequence."""
    train, found = config.train, Amounts()
    for dataset in train.datasets:
        rows, remark = _rows(dataset)
        tokens = rows * train.sequence_length
        found = found.plus(Amounts(rows, tokens, tokens, is_exact=False, remarks=remark))
    how = train.self_distillation
    for dataset in how.datasets if how else ():
        rows, remark = _rows(dataset)
        answers = _answers(config, how, rows, MAX_TOKENS)  # type: ignore[arg-type]
        longest = train.sequence_length - 2
        found = found.plus(replace(answers, is_exact=False, longest_prompt=longest, remarks=remark))
    return found


def _rows(dataset: Dataset) -> tuple[int, tuple[str, ...]]:
    """Return how many rows of a dataset are read, and a remark if that is not known."""
    part = _SLICE.fullmatch(dataset.split)
    sliced = int(part[2]) - int(part[1] or 0) if part else None
    known = [n for n in (dataset.rows, sliced) if n is not None]
    if known:
        return max(0, min(known)), ()
    return 0, (
        f"dataset {dataset.name} is not counted: its number of rows is not known before it is "
        "fetched; its key rows limits it",
    )


def by_size(config: RunConfig) -> Amounts:
    """Estimate the text of files by their bytes, without a tokenizer."""
    train, found = config.train, Amounts()
    for name in train.files:
        size = sum(file.stat().st_size for file in _found(name, config))
        tokens = size // BYTES_A_TOKEN
        documents = -(-tokens // train.sequence_length)
        found = found.plus(Amounts(documents, tokens, tokens, is_exact=False))
    return found


def _found(name: str, config: RunConfig) -> Iterator[Any]:
    path = find_file(name, config)
    yield from files_of(path) if path else ()
