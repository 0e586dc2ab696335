"""Compiles guides with llguidance; the only module that knows of it.

Another engine can stand in: it needs a `Matcher` (`core.contracts`), and `compile` of a guide.
llguidance is imported, and the tokenizer's trie is built, with the first guide of a process.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from specpipe.core.contracts import Ints, Mask
from specpipe.core.errors import ConfigError, StageFailed, Unsupported
from specpipe.core.guide import WHITESPACE, Guide
from specpipe.runtime.tokens import TextTokenizer
from specpipe.speculate.constrained import Constraint

MOST_KNOWN = 64  # compiled guides that are kept for the next request with the same one
_ANY_JSON = "{}"
_ONE_TEXT = re.compile(r'^([a-z]+: )"([^"\\\n]*)"$', re.MULTILINE)  # a rule of a grammar


@dataclass(frozen=True, eq=False)
class LlguidanceMatcher:
    """See `speculate.constrained.Matcher`. The tokenizer's own end tokens are never permitted."""

    matcher: Any  # llguidance's
    compiler: "Compiler"

    def copy(self) -> "LlguidanceMatcher":
        """Return another matcher in the same state."""
        return LlguidanceMatcher(self.matcher.deep_copy(), self.compiler)

    def feed(self, token: int) -> bool:
        """Move on by a token; see `Matcher`.

        llguidance takes an end token where the answer may end, but does not count it.
        """
        if token in self.compiler.end_ids:
            return False
        return bool(self.matcher.try_consume_tokens([token]) == 1)

    def mask(self) -> Mask:
        """Return the tokens [V] that may follow.

        Raises StageFailed if the grammar became too complex for llguidance's limits.
        """
        words = np.zeros(-(-self.compiler.tokenizer.vocab_size // 32), np.uint32)
        self.matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self.matcher.is_error():
            raise StageFailed(f"the grammar failed: {first_line(self.matcher.get_error())}")
        bits = np.unpackbits(words.view(np.uint8), bitorder="little").view(np.bool_)
        bits[list(self.compiler.end_ids)] = False
        self._spell(bits)
        return bits[: self.compiler.vocab_size]

    def _spell(self, bits: Mask) -> None:
        """Correct a mask with a special token for its text, which llguidance then refuses.

        Such a mask comes of text that can only go on in one way: it is tokenized as the model's
        tokenizer does. Here it is spelled with other tokens.
        """
        special = self.compiler.special_ids
        found = special[bits[special]]
        wrong = [token for token in found.tolist() if not self.copy().feed(token)]
        bits[wrong] = False
        if wrong and not bits.any():
            text = self.matcher.deep_copy().compute_ff_bytes().decode(errors="ignore")
            first = self.compiler.tokenizer.greedy_tokenize(text)[:1]
            bits[[token for token in first if self.copy().feed(token)]] = True

    def accepts(self) -> bool:
        """Tell whether the answer may end here."""
        return bool(self.matcher.is_accepting())


@dataclass(frozen=True, eq=False)
class Compiler:
    """Makes matchers for one tokenizer."""

    tokenizer: Any  # llguidance's
    vocab_size: int  # rows of the model, which may be more or fewer than the tokenizer's tokens
    special: Mapping[str, int] = field(default_factory=dict)  # tokens that are no text

    @cached_property
    def special_ids(self) -> Ints:
        """The special tokens, ascending."""
        return np.array(sorted(self.special.values()), np.int64)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The end tokens of the tokenizer, which no text contains."""
        return frozenset(self.tokenizer.eos_tokens)

    def compile(self, guide: Guide) -> LlguidanceMatcher:
        """Return a matcher at the start of a guide; raises ConfigError if it cannot be used."""
        from llguidance import LLMatcher

        try:
            matcher = LLMatcher(self.tokenizer, self._grammar(guide), log_level=0)
        except ValueError as error:
            raise refusal(guide, str(error)) from error
        if matcher.is_error():
            raise refusal(guide, matcher.get_error())
        return LlguidanceMatcher(matcher, self)

    def _grammar(self, guide: Guide) -> str:
        from llguidance import LLMatcher, regex_to_lark
        from llguidance.gbnf_to_lark import any_to_lark

        if guide.kind == "regex":
            ascii_only = regex_to_lark(
                guide.text, use_ascii="dw"
            )  # \d and \w, as JSON Schema has them
            return str(LLMatcher.grammar_from_lark(f"start: /{ascii_only}/\n"))
        if guide.kind == "ebnf_grammar":
            try:
                lark = any_to_lark(guide.text)
            except Exception as error:  # of its parser, which has a class for some mistakes only
                raise ValueError(str(error)) from error
            return str(LLMatcher.grammar_from_lark(self._with_special_tokens(lark)))
        schema = _ANY_JSON if guide.kind == "json" else guide.text
        options = {"whitespace_pattern": WHITESPACE}
        return str(LLMatcher.grammar_from_json_schema(schema, overrides=options))

    def _with_special_tokens(self, lark: str) -> str:
        """Return a grammar in which a rule with one text, if that is a special token, is it.

        In texts, special tokens are never permitted.
        """

        def token(rule: re.Match[str]) -> str:
            number = self.special.get(rule[2])
            return rule[0] if number is None else f"{rule[1]}<[{number}]>"

        return _ONE_TEXT.sub(token, lark)


def refusal(guide: Guide, error: str) -> ConfigError:
    """Return the refusal of a guide for a compiler's reason."""
    names = {"json_schema": "JSON schema", "regex": "regular expression", "ebnf_grammar": "grammar"}
    return ConfigError(f"the {names.get(guide.kind, 'guide')} cannot be used: {first_line(error)}")


def first_line(text: str) -> str:
    """Return the reason in an error of llguidance, on one line."""
    lines = [line.strip() for line in text.splitlines()]
    told = [line for line in lines if line.startswith("error:")]
    return (told or [line for line in lines if line] or ["unknown error"])[0][:300]


def compiler_of(tokenizer: TextTokenizer, vocab_size: int) -> Compiler:
    """Return a compiler for a repository's tokenizer and a model with `vocab_size` rows.

    Raises Unsupported if llguidance is missing, or cannot read the tokenizer.
    """
    try:
        from llguidance import LLTokenizer
    except ModuleNotFoundError as error:
        raise Unsupported(
            "structured output needs the package llguidance", hint="pip install llguidance"
        ) from error
    size = max(vocab_size, tokenizer.tokenizer.get_vocab_size())
    ends = list(tokenizer.end_ids) or None
    try:
        known = LLTokenizer(tokenizer.tokenizer.to_str(), n_vocab=size, eos_token=ends)
    except Exception as error:  # llguidance raises what its parser raises
        raise Unsupported(
            f"structured output: llguidance cannot read the tokenizer: {first_line(str(error))}"
        ) from error
    # More than those of the tokenizer: llguidance counts every added token such as <think>.
    special = {
        token.content: number
        for number, token in tokenizer.added.items()
        if known.is_special_token(number)
    }
    return Compiler(known, vocab_size, special)


def no_compiler() -> Compiler:
    """Refuse every guide, where there is no tokenizer."""
    raise Unsupported("structured output: this decoder has no tokenizer")


class Grammars:
    """Compiled guides of one model, usable from several threads."""

    def __init__(self, load: Callable[[], Compiler]) -> None:
        """Load the compiler with the first guide; `load` raises what is wrong with it."""
        self._load = load
        self._known: OrderedDict[Guide, LlguidanceMatcher] = OrderedDict()
        self._lock, self._compiling = threading.Lock(), threading.Lock()

    def check(self, guide: Guide) -> None:
        """Compile a guide, so that `constraint` is quick; raises what is wrong with it."""
        if self._find(guide) is None:
            self._compile(guide)

    def constraint(self, guide: Guide, end_ids: Sequence[int]) -> Constraint:
        """Return the constraint of one answer, which ends with one of `end_ids`."""
        return Constraint(self._find(guide) or self._compile(guide), end_ids)

    @cached_property
    def _compiler(self) -> Compiler:
        return self._load()

    def _compile(self, guide: Guide) -> LlguidanceMatcher:
        with self._compiling:  # may take a second, for which nothing else waits
            made = self._compiler.compile(guide)
        with self._lock:
            self._known[guide] = made
            if len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
            return made.copy()

    def _find(self, guide: Guide) -> LlguidanceMatcher | None:
        with self._lock:
            if guide not in self._known:
                return None
            self._known.move_to_end(guide)
            return self._known[guide].copy()
