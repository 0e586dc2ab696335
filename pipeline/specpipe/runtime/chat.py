"""Tokens of a conversation: the template's control tokens stay tokens, and those in texts do not.

A control token in a text of the conversation is marked, the template is rendered, and the prompt is
cut at the marks. What was marked is encoded as ordinary text. Text without control tokens gets the
ids of transformers' `apply_chat_template`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer

from specpipe.core.chat_template import compiled, literals, render, searched
from specpipe.core.conversation import ChatTemplate, Conversation
from specpipe.core.errors import ConfigError

# Marks are two of these that the conversation does not have. They have no case, are no spaces, and
# Python prints them as they are, so that filters of a template do not change them.
_MARKS = [chr(code) for code in chain(range(0x12000, 0x1236F), range(0x13000, 0x1342F))]
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function", "ipython"})
_PROBES = (
    Conversation.of("?", system="?"),
    Conversation.of("?").then("assistant", "?").then("user", "?"),
    Conversation.of("?"),
)


@dataclass(frozen=True)
class ChatEncoder:
    """The chat template of a model together with its tokenizer."""

    tokenizer: Tokenizer
    template: ChatTemplate

    def text(self, conversation: Conversation) -> str:
        """Return the prompt as text; raises what `render` raises."""
        return render(self.template, conversation)

    def encode(self, conversation: Conversation) -> list[int]:
        """Return the tokens of the prompt, without tokens that the template does not write.

        Raises what `render` raises, and ConfigError for a role that is a part of a control token.
        """
        self._require_roles(conversation)
        if not any(map(self._control.search, conversation.texts())):
            return self._ids(self.text(conversation))
        begin, end = self._unused(conversation)
        prompt = self.text(conversation.each(self._marking(conversation, begin + r"\g<0>" + end)))
        return self._encode_marked(_raw_marks(prompt, begin, end), begin, end)

    def first_control(self, conversation: Conversation) -> str | None:
        """Return the first control token in a text of a conversation; None if there is none."""
        hits = map(self._control.search, conversation.texts())
        return next((hit.group() for hit in hits if hit), None)

    @cached_property
    def control_tokens(self) -> tuple[str, ...]:
        """The tokens that only the template may write, the longest first.

        Those are all special tokens, and the added tokens that are in a text of the template or in
        what it makes of short conversations.
        """
        written = "\0".join([*map(literals, self.template.templates.values()), *self._rendered()])
        added = {token.content for token in self.tokenizer.get_added_tokens_decoder().values()}
        found = {token for token in added if token in written and not token.isspace()}
        return tuple(sorted(self._special | found, key=lambda token: (-len(token), token)))

    @cached_property
    def _special(self) -> frozenset[str]:
        added = self.tokenizer.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special)

    def _rendered(self) -> Iterator[str]:
        for text in self.template.templates.values():
            for probe in _PROBES:
                try:
                    yield compiled(text).render(
                        **self.template.special_tokens,
                        messages=probe.messages,
                        add_generation_prompt=True,
                    )
                except (TemplateError, TypeError, ValueError, LookupError):
                    continue

    @cached_property
    def _control(self) -> re.Pattern[str]:
        return _any_of(self.control_tokens)

    @cached_property
    def _parts(self) -> frozenset[str]:
        return frozenset(token.strip("<>|｜[]{}/ ") for token in self.control_tokens)

    def _require_roles(self, conversation: Conversation) -> None:
        for message in conversation.messages:
            role = message["role"]
            if role not in _ROLES and role in self._parts:
                raise ConfigError(f"the role {role!r} is a part of a control token of the model")

    def _marking(self, conversation: Conversation, marked: str) -> "_Marking":
        chosen = self.template.choose(conversation.template, tools=bool(conversation.tools))
        expected = "\0".join(searched(chosen))
        kept = [t for t in self.control_tokens if t in self._special or t not in expected]
        return _Marking(self._control, _any_of(kept), marked)

    def _unused(self, conversation: Conversation) -> Sequence[str]:
        """Return two characters that are not in the conversation and not in the template."""
        text = "\0".join([*conversation.texts(), *map(literals, self.template.templates.values())])
        free = (m for m in _MARKS if m not in text and _escaped(m) not in text)
        found = [mark for _, mark in zip(range(2), free, strict=False)]
        if len(found) < 2:
            raise ConfigError("the conversation has every cuneiform sign and every hieroglyph")
        return found

    def _encode_marked(self, prompt: str, begin: str, end: str) -> list[int]:
        """Return the tokens of a marked prompt: of the text between marks, and of what is marked.

        A template that cuts texts may leave a lone mark, which has no token. But the text is cut
        there, so that its two sides cannot join to a control token.
        """
        cut = re.compile(f"{begin}({self._control.pattern}){end}|[{begin}{end}]")
        ids: list[int] = []
        for number, piece in enumerate(cut.split(prompt)):
            if piece:
                ids += self._continued(piece, first=number == 0, plain=number % 2 == 1)
        return ids

    def _continued(self, text: str, *, first: bool, plain: bool) -> list[int]:
        """Return the tokens of a text within a prompt.

        Tokenizers of sentencepiece begin a text with a space. So it is encoded after a line break,
        which is cut off again.
        """
        encode = self._spelled if plain else self._ids
        if first:
            return encode(text)
        ids, before = encode("\n" + text), encode("\n")
        return ids[len(before) :] if ids[: len(before)] == before else encode(text)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _spelled(self, text: str) -> list[int]:
        """Return the tokens of a text in which no added token is found.

        Some models have a control token in their ordinary vocabulary too. Its characters are then
        encoded one by one.
        """
        ids = self._without_added(text)
        if not self._control_ids.isdisjoint(ids):
            ids = [i for character in text for i in self._without_added(character)]
        return ids

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        found = map(self.tokenizer.token_to_id, self.control_tokens)
        return frozenset(number for number in found if number is not None)

    def _without_added(self, text: str) -> list[int]:
        normalizer, splitter = self.tokenizer.normalizer, self.tokenizer.pre_tokenizer
        text = normalizer.normalize_str(text) if normalizer else text
        words = [word for word, _ in splitter.pre_tokenize_str(text)] if splitter else [text]
        return [token.id for word in words for token in self.tokenizer.model.tokenize(word)]


@dataclass(frozen=True)
class _Marking:
    """Marks control tokens in texts.

    The answers of an assistant may contain what the template looks for in them, such as `</think>`,
    as tokens. All other control tokens are marked there too.
    """

    everywhere: re.Pattern[str]
    in_answers: re.Pattern[str]
    marked: str  # the replacement of a control token

    def __call__(self, text: str, role: str) -> str:
        pattern = self.in_answers if role == "assistant" else self.everywhere
        return pattern.sub(self.marked, text)


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")


def _escaped(character: str) -> str:
    """Return a character as JSON in ASCII spells it."""
    code = ord(character) - 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def _raw_marks(prompt: str, *marks: str) -> str:
    """Return a prompt with marks as characters, where a template wrote JSON in ASCII."""
    for mark in marks:
        prompt = prompt.replace(_escaped(mark), mark)
    return prompt
