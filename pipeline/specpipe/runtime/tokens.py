"""Converts text to tokens, and tokens to text in pieces; needs tokenizers, not transformers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import DecodeStream

from specpipe.core.conversation import ChatTemplate, Conversation
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.core.tokenizer import FILE, Additions, extend, read_tokenizer_json
from specpipe.runtime.chat import ChatEncoder
from specpipe.runtime.stop_words import StopWords


@dataclass(frozen=True)
class TextTokenizer:
    """The tokenizer of a repository, with the facts about it that serving needs."""

    tokenizer: Tokenizer
    vocab_size: int
    end_ids: tuple[int, ...]  # the first is the `end_id` of clients that know of one
    pad_id: int
    longest_token: int  # in bytes
    template: ChatTemplate | None = None  # None: the model has none

    def most_bytes(self, tokens: int) -> int:
        """Return how many bytes a text of `tokens` tokens can have at most."""
        return tokens * self.longest_token

    def encode(self, text: str, max_input_len: int) -> list[int]:
        """Return the tokens of a prompt.

        Raises ConfigError if there are none or more than `max_input_len`, or if the model has no
        row for one; a text that is certain to be too long is refused without being tokenised.
        """
        self._require_short(text, max_input_len)
        return self._checked(self.tokenizer.encode(text).ids, max_input_len)

    def encode_chat(self, conversation: Conversation, max_input_len: int) -> list[int]:
        """Return the tokens of a conversation in the model's chat template.

        Raises Unsupported if the model has none, ConfigError if the template refuses the
        conversation, and for what `encode` refuses.
        """
        self._require_short("".join(conversation.texts()), max_input_len)
        return self._checked(self.chat.encode(conversation), max_input_len)

    def encode_prompt(self, prompt: str | Conversation, max_input_len: int) -> list[int]:
        """Return the tokens of a text or of a conversation; raises what these raise."""
        encode = self.encode if isinstance(prompt, str) else self.encode_chat
        return encode(prompt, max_input_len)  # type: ignore[arg-type]

    @cached_property
    def chat(self) -> ChatEncoder:
        """The chat template; raises Unsupported if the model has none."""
        if self.template is None:
            raise Unsupported("the model has no chat template", hint="send text instead of a chat")
        return ChatEncoder(self.tokenizer, self.template)

    def _require_short(self, text: str, max_input_len: int) -> None:
        size = len(text.encode())
        if size > self.most_bytes(max_input_len):
            raise ConfigError(
                f"the prompt has {size} bytes: more than {max_input_len} tokens "
                "(max_input_len) can hold"
            )

    def _checked(self, ids: list[int], max_input_len: int) -> list[int]:
        if not ids:
            raise ConfigError("the prompt is empty: it must have at least one token")
        if len(ids) > max_input_len:
            raise ConfigError(
                f"the prompt has {len(ids)} tokens: at most {max_input_len} "
                "(max_input_len) are allowed"
            )
        self._require_rows(ids)
        return ids

    def _require_rows(self, ids: Sequence[int]) -> None:
        if max(ids) >= self.vocab_size:
            beyond = next(i for i in ids if i >= self.vocab_size)
            raise ConfigError(
                f"the prompt contains {self.tokenizer.id_to_token(beyond)!r}, token {beyond}: the "
                f"model has none from {self.vocab_size} on"
            )

    @cached_property
    def added(self) -> Mapping[int, AddedToken]:
        """The tokens that are found in a text before it is split: special ones and others."""
        tokens: Mapping[int, AddedToken] = self.tokenizer.get_added_tokens_decoder()
        return tokens

    @property
    def begin(self) -> str:
        """The text of the tokens that the tokenizer puts before every text."""
        whole, plain = (self.tokenizer.encode("x", add_special_tokens=a).ids for a in (True, False))
        added = whole[: -len(plain)] if whole[-len(plain) :] == plain else []
        return "".join(self.tokenizer.id_to_token(i) or "" for i in added)

    def count(self, text: str) -> int:
        """Return how many tokens a part of a text has."""
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def words(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return the tokens of stop or bad words, without special tokens; empty ones are dropped.

        A word is also taken with a space before it, as it stands within a sentence, and as it
        follows other text: tokenizers of sentencepiece begin a text with a space.
        """
        ids = (i for text in texts if text for i in self._spellings(text))
        return tuple(dict.fromkeys(tuple(i) for i in ids if i))

    def _spellings(self, text: str) -> Iterator[list[int]]:
        before, alone, spaced, following = (
            self.tokenizer.encode(t, add_special_tokens=False).ids
            for t in ("\n", text, " " + text, "\n" + text)
        )
        yield from (alone, spaced)
        if following[: len(before)] == before:
            yield following[len(before) :]

    def bias(self, words: Sequence[tuple[str, float]]) -> tuple[tuple[int, float], ...]:
        """Return the bias of each token of the given words, spelled as given.

        As upstream: a word of several tokens adds its amount to each of them.
        """
        amounts: dict[int, float] = {}
        for word, amount in words:
            for token in self.tokenizer.encode(word, add_special_tokens=False).ids:
                amounts[token] = amounts.get(token, 0.0) + amount
        return tuple(sorted(amounts.items()))

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of tokens; `special` ones have text only on request."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=not special)
        return text

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Return the text of an answer; an end token has none, whether it is special or not."""
        return self.decode(ids[:-1] if ids and ids[-1] in self.end_ids else ids)


def load_tokenizer(folder: Path) -> TextTokenizer:
    """Load tokenizer.json and tokenizer_facts.json from `folder`.

    Raises ConfigError if one is missing or damaged.
    """
    try:
        facts = json.loads((folder / "tokenizer_facts.json").read_text(encoding="utf-8"))
        additions = Additions.from_json(facts.get("additions", {}))
        template = None if facts.get("chat") is None else ChatTemplate(**facts["chat"])
        tokenizer = extend(read_tokenizer_json((folder / FILE).read_bytes()), additions)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder}: no usable tokenizer: {error}", hint="run `specpipe package` again"
        ) from error
    # Every byte of a prompt is covered by a token, which stands for at most its own length in
    # bytes; four for a character that a tokenizer writes as one symbol.
    longest = max(len(token.encode()) for token in tokenizer.get_vocab()) * 4
    return TextTokenizer(
        tokenizer, facts["vocab_size"], _end_ids(facts, folder), facts["pad_id"], longest, template
    )


def _end_ids(facts: dict[str, Any], folder: Path) -> tuple[int, ...]:
    """Return the end tokens; older facts named one of them, which may be the wrong one."""
    if "end_ids" not in facts:
        raise ConfigError(
            f"{folder}/tokenizer_facts.json names one end token, as older versions of specpipe "
            "did: a model may have several",
            hint="run `specpipe build` again",
        )
    return tuple(facts["end_ids"])


@dataclass
class TextStream:
    """The text of a growing answer, in pieces of valid UTF-8 that concatenate to `decode`.

    Ends where the first stop word ends; the stop word is kept, as upstream keeps it, except for
    special tokens, which have no text unless `special` is set. The token that ends the answer is
    one of `tokens` and has no text, even if the tokenizer does not call it special.
    """

    tokenizer: TextTokenizer
    stop_words: tuple[str, ...] = ()
    end_ids: tuple[int, ...] = ()  # those of the request
    special: bool = False  # whether special tokens have text
    tokens: list[int] = field(default_factory=list)
    text: str = ""  # text that was returned already
    stopped: bool = False

    def __post_init__(self) -> None:
        self._stream = DecodeStream(skip_special_tokens=not self.special)
        marked = self.stop_words and not self.special
        self._words = StopWords.of(self.stop_words, self.tokenizer.added if marked else {})
        self._seen = ""  # the text, and the marks of special tokens
        self._cut = False

    @property
    def spoken(self) -> list[int]:
        """The tokens that have text."""
        ended = self.tokens and self.tokens[-1] in self.end_ids
        return self.tokens[:-1] if ended else self.tokens

    def push(self, tokens: Sequence[int]) -> str:
        """Take new tokens, up to a stop word; return the text that is now certain."""
        before = len(self.text)
        for token in tokens:
            if self.stopped:
                break
            self.tokens.append(token)
            if token in self.end_ids:
                break
            self._append(self._stream.step(self.tokenizer.tokenizer, token) or "")
            self._see(self._words.mark(token))
        return self.text[before:]

    def finish(self) -> str:
        """Return the rest at the end: the bytes of an incomplete character."""
        whole = self.tokenizer.decode(self.spoken, special=self.special)
        if self._cut or not whole.startswith(self.text):
            return ""
        rest = whole[len(self.text) :]
        self.text = whole
        return rest

    def _append(self, piece: str) -> None:
        """Append text, up to the end of the first stop word in it."""
        self.text += piece[: len(piece) - self._see(piece)]
        self._cut = self.stopped  # what follows in the tokens is behind the stop word

    def _see(self, piece: str) -> int:
        """Look for stop words in text or a mark that follow; return what is behind the first."""
        if self.stopped or not piece:
            return 0
        # A stop word may begin in earlier text, but not end there: that would have stopped us.
        begin = len(self._seen)
        self._seen += piece
        end = self._words.first_end(self._seen, begin)
        self.stopped = end is not None
        return 0 if end is None else len(self._seen) - end
