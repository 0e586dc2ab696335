"""Answers of a server to the requests of a scenario, with every arrival time."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from specpipe.core.endpoint import Model
from specpipe.core.errors import SpecpipeError
from specpipe.serve.client import Client, Options, Piece, unshared
from specpipe.validate.arms import ServedArm
from specpipe.validate.questions import Question, Questions
from specpipe.validate.trials import Arm


@dataclass(frozen=True)
class PromptItem:
    """One prompt of a scenario, and the dataset that it is from."""

    question: Question
    dataset: str = "prompts"


@dataclass(frozen=True)
class Answer:
    """One answer of a server, or the error in its place."""

    scenario: str
    dataset: str
    prompt: int  # its number in the scenario
    arm: Arm
    load: str
    seed: int | None
    text: str
    tokens: tuple[int, ...]  # empty: the request was text
    output_tokens: int
    asked: tuple[int, ...]  # the tokens of the prompt
    sent_s: float  # since the load began
    sent_ns: int  # since 1970
    times_s: tuple[float, ...]  # arrival of every response, since the request was sent
    piece_tokens: tuple[int, ...] = ()  # tokens of every response; empty: not known
    first_tokens: int = 1  # that the first response carries
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    max_tokens: int = 0
    error: str | None = None

    @property
    def first_s(self) -> float:
        """Seconds to the first response."""
        return self.times_s[0]

    @property
    def total_s(self) -> float:
        """Seconds to the last response."""
        return self.times_s[-1]

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first response; None if there is none."""
        later = self.output_tokens - self.first_tokens
        return (self.total_s - self.first_s) / later if later > 0 else None

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between consecutive responses."""
        return [b - a for a, b in pairwise(self.times_s)]


@dataclass(frozen=True)
class PromptRequest:
    """What is sent for one answer."""

    scenario: str
    item: PromptItem
    prompt: int
    arm: ServedArm
    load: str
    options: Options
    as_tokens: bool = False
    shares_prefix: bool = False  # whether the server may find the KV cache of earlier prompts


def ask(client: Client, request: PromptRequest, questions: Questions) -> Answer:
    """Send a request and return its answer; an error of the server becomes part of it.

    The prompt is read as a whole, unless the request shares prefixes. The text of an answer in
    tokens is that of the tokenizer.
    """
    question, arm = request.item.question, request.arm
    options = replace(request.options, num_draft_tokens=arm.num_draft_tokens)
    blank = Answer(
        request.scenario, request.item.dataset, request.prompt, arm.arm, request.load,
        options.seed, "", (), 0, question.tokens, 0.0, time.time_ns(), (0.0,),
        max_tokens=options.max_tokens,
    )  # fmt: skip
    try:
        if request.as_tokens:
            options = replace(options, end_ids=questions.end_ids)
            options = _salted(options, client.endpoint.tokens, request)
            found = _with_tokens(blank, list(client.stream_tokens(question.tokens, options)))
            return replace(found, text=questions.tokenizer.decode_answer(found.tokens))
        options = _salted(options, client.endpoint.text, request)
        return _with_text(client, blank, question, options)
    except SpecpipeError as error:
        return replace(blank, error=str(error))


def _salted(options: Options, model: Model | None, request: PromptRequest) -> Options:
    return options if model is None or request.shares_prefix else unshared(options, model)


def _with_text(client: Client, blank: Answer, question: Question, options: Options) -> Answer:
    if client.endpoint.text.decoupled:
        pieces = list(client.stream(question.prompt, options))
        whole = client.collect(iter(pieces))
    else:
        whole, pieces = client.generate(question.prompt, options), []
    count = whole.output_tokens or 0
    times = tuple(piece.at_s for piece in pieces if piece.text) or (whole.first_s,)
    if times[-1] < whole.total_s:
        times = (*times, whole.total_s)
    first = pieces[0].acceptance.accepted_draft_tokens + 1 if len(pieces) > 1 else count
    return replace(
        blank, text=whole.text, output_tokens=count, times_s=times, first_tokens=first,
        draft_tokens=max((p.acceptance.draft_tokens for p in pieces), default=0),
        accepted_draft_tokens=max((p.acceptance.accepted_draft_tokens for p in pieces), default=0),
    )  # fmt: skip


def _with_tokens(blank: Answer, pieces: Sequence[Piece]) -> Answer:
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    full = [piece for piece in pieces if piece.tokens]
    return replace(
        blank, tokens=tokens, output_tokens=len(tokens),
        times_s=tuple(p.at_s for p in full) or (pieces[-1].at_s,),
        piece_tokens=tuple(len(p.tokens) for p in full),
        first_tokens=len(full[0].tokens) if full else 0,
        draft_tokens=pieces[-1].acceptance.draft_tokens,
        accepted_draft_tokens=pieces[-1].acceptance.accepted_draft_tokens,
    )  # fmt: skip


def good(answers: Sequence[Answer]) -> Iterator[Answer]:
    """Yield the answers that are no errors."""
    return (answer for answer in answers if answer.error is None)
