"""A served toy model behind the client's interface, and the faults that serving can have.

Tokens are printable characters. The logits after a context depend on its last tokens and on all of
it, so that another prefix gives another answer. The reference is the same model without faults.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from specpipe.core.contracts import Floats, Logits
from specpipe.core.conversation import Conversation
from specpipe.core.endpoint import Endpoint, Serving
from specpipe.engine.openvino.endpoint import describe
from specpipe.runtime.tokens import TextTokenizer
from specpipe.serve.client import Acceptance, Generation, Options, Piece, PromptScores, collect
from specpipe.validate.reference import ReferenceAnswer

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
END = 0
VOCABULARY = {"<end>": END, "<unk>": 1, **{letter: i + 2 for i, letter in enumerate(LETTERS)}}
SIZE = len(VOCABULARY)
DRAFTS = 3  # of a step


def toy_tokenizer() -> TextTokenizer:
    """Return a tokenizer with a token for every letter."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<end>"])
    return TextTokenizer(tokenizer, SIZE, (END,), END, 4)


@lru_cache(100_000)
def _row(last: tuple[int, ...], total: int) -> Floats:
    row = np.random.default_rng((*last, total)).normal(0, 3, SIZE)
    row[END] -= 1
    row[1] = -50  # nothing is unknown
    return row


def toy_logits(context: Sequence[int]) -> Floats:
    """Return the logits [V] after a context."""
    return _row(tuple(context[-2:]), sum((i % 5 + 1) * t for i, t in enumerate(context)) % 101)


def draw(row: Floats, options: Options, place: int) -> int:
    """Return the token at a place of an answer; the same for the same seed."""
    if not options.temperature or not options.top_p:
        return int(row.argmax())
    noise = np.random.default_rng((options.seed or 0, place)).gumbel(size=SIZE)
    return int((row / options.temperature + noise).argmax())


class ToyReference:
    """The judge: the model as it should be."""

    def generate(
        self, prompt: Sequence[int], max_tokens: int, end_ids: Sequence[int]
    ) -> ReferenceAnswer:
        """Decode greedily."""
        tokens: list[int] = []
        while len(tokens) < max_tokens and END not in tokens:
            tokens.append(int(toy_logits([*prompt, *tokens]).argmax()))
        return ReferenceAnswer(tuple(tokens), (1.0,) * len(tokens), 0.01, 0.01 * len(tokens) + 0.01)

    def read(self, tokens: Sequence[int], block: int) -> Iterator[Logits]:
        """Yield the logits after every token."""
        rows = [toy_logits(tokens[: i + 1]) for i in range(len(tokens))]
        yield np.array(rows, np.float32)


@dataclass
class ServedModel:
    """A client of a server without faults; a fault is a subclass that overrides one method."""

    endpoint: Endpoint = field(default_factory=lambda: describe(Serving("prompt_lookup", DRAFTS)))
    tokenizer: TextTokenizer = field(default_factory=toy_tokenizer)
    lock: threading.Lock = field(default_factory=threading.Lock)

    # What faults override.

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.tokenizer.encode(text).ids)

    def context(self, prompt: Sequence[int], options: Options) -> Sequence[int]:
        """Return what the engine has in its KV cache for a prompt."""
        return prompt

    def logits(self, context: Sequence[int], options: Options) -> Floats:
        return toy_logits(context)

    def choose(self, row: Floats, options: Options, place: int) -> int:
        return draw(row, options, place)

    def ends(self, token: int) -> bool:
        return token == END

    def room(self, options: Options) -> int:
        return options.max_tokens

    def stop(self, text: str, words: Sequence[str]) -> int | None:
        """Return where an answer ends; None: it contains no stop word."""
        found = [text.index(word) + len(word) for word in words if word in text]
        return min(found, default=None)

    def drafts(self, options: Options) -> int:
        """Return the draft tokens of a step."""
        return DRAFTS if options.num_draft_tokens is None else options.num_draft_tokens

    def acceptance(self, found: Acceptance) -> Acceptance:
        return found

    # The client's interface.

    def decode(self, prompt: Sequence[int], options: Options) -> Iterator[int]:
        """Yield the tokens of an answer."""
        tokens: list[int] = []
        context = list(self.context(prompt, options))
        while len(tokens) < self.room(options):
            row = self.logits([*context, *tokens], options)
            tokens.append(self.choose(row, options, len(tokens)))
            yield tokens[-1]
            if self.ends(tokens[-1]):
                return

    def steps(self, prompt: Sequence[int], options: Options) -> Iterator[tuple[int, ...]]:
        """Yield the tokens of every step: with speculation one to three."""
        most = self.drafts(options)
        step: list[int] = []
        for place, token in enumerate(self.decode(prompt, options)):
            step.append(token)
            if len(step) > (place * 7 % 3 if most else 0):
                yield tuple(step)
                step = []
        if step:
            yield tuple(step)

    def stream_tokens(self, prompt: Sequence[int], options: Options) -> Iterator[Piece]:
        """Yield a piece for every step."""
        done, drafted, accepted = 0, 0, 0
        for number, step in enumerate(self.steps(prompt, options)):
            done += len(step)
            drafted, accepted = drafted + self.drafts(options), accepted + len(step) - 1
            found = self.acceptance(Acceptance(drafted, accepted if drafted else 0))
            scores = (-0.5,) * len(step) if options.log_probs else ()
            yield Piece("", step, False, found, None, 0.01 * (number + 1), log_probs=scores)
        yield Piece("", (), True, found, done, 0.01 * (number + 1))

    def stream(self, prompt: str | Conversation, options: Options) -> Iterator[Piece]:
        """Yield text; an answer ends at its stop word."""
        assert isinstance(prompt, str)
        text, count = "", 0
        for piece in self.stream_tokens(self.encode(prompt), options):
            new = self.tokenizer.decode([t for t in piece.tokens if t != END])
            count += len(piece.tokens)
            at = self.stop(text + new, options.stop_words)
            if at is not None:
                kept = (text + new)[:at][len(text) :]
                yield replace(piece, text=kept, tokens=(), final=True, output_tokens=count)
                return
            text += new
            yield replace(piece, text=new, tokens=(), output_tokens=count if piece.final else None)

    def generate(
        self, prompt: str | Conversation, options: Options, *, model: str = ""
    ) -> Generation:
        """Return a whole answer."""
        return collect(self.stream(prompt, options))

    def collect(self, pieces: Iterator[Piece]) -> Generation:
        """Put pieces together."""
        return collect(pieces)

    def context_logits(self, prompt: Sequence[int]) -> Iterator[Logits]:
        """Yield the logits after every token."""
        rows = [self.logits(prompt[: i + 1], Options()) for i in range(len(prompt))]
        yield np.array(rows, np.float32)

    def prompt_scores(self, prompt: Sequence[int]) -> PromptScores:
        """Return the scores of a prompt."""
        rows = next(self.context_logits(prompt)).astype(np.float64)
        rows -= np.log(np.exp(rows).sum(axis=1))[:, None]
        following = [float(row[t]) for row, t in zip(rows, prompt[1:], strict=False)]
        return PromptScores(
            (*following, float("nan")),
            tuple(int(row.argmax()) for row in rows),
            tuple(float(row.max()) for row in rows),
        )
