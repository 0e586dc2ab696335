"""The tokenizer of a source as transformers reads it, to judge the one that is served.

transformers 5 replaces the rules of some tokenizer.json by those of a class, and its releases
differ in the space after a special token where a folder has no tokenizer.json. What is served
follows the file, so it is right if either class reads the source so: the one that `AutoTokenizer`
chooses, or the generic one, which keeps the rules of the file.

Not here: the tokenizers of .gguf files, of which transformers drops rules that the file states.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specpipe.core.conversation import Message
from specpipe.core.tokenizer import FILE


@dataclass(frozen=True)
class JudgeTokenizer:
    """One reading of a source's tokenizer by transformers."""

    reader: Any  # of transformers
    whole: bool  # False: its releases differ in special tokens, and in the text next to them

    @property
    def name(self) -> str:
        """Return the name of its class."""
        return type(self.reader).__name__

    def encode(self, text: str, *, around: bool = True) -> list[int]:
        """Return the tokens of a text, with those `around` every text."""
        ids: list[int] = self.reader(text, add_special_tokens=around).input_ids
        return ids

    def render(self, messages: Sequence[Message]) -> str | None:
        """Return messages in the chat template; None if transformers finds no template."""
        if not self.reader.chat_template:
            return None
        text: str = self.reader.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        return text

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out, and no space removed from it."""
        backend = getattr(self.reader, "backend_tokenizer", None)
        if backend is None:  # a class that is written in Python
            text: str = self.reader.decode(
                list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        else:
            text = backend.decode(list(tokens), skip_special_tokens=True)
        return text

    def parts(self, text: str) -> list[str]:
        """Return the parts of a text that every release reads alike: the whole, or what is between
        special tokens, without spaces around it.
        """
        if self.whole:
            return [text]
        marks = sorted(map(re.escape, self.reader.all_special_tokens), key=len, reverse=True)
        between = re.split("|".join(marks), text) if marks else [text]
        return [part.strip() for part in between if part.strip()]


def open_judges(source: Path) -> Iterator[JudgeTokenizer]:
    """Yield the readings of a source's tokenizer; none of a .gguf file, or if both classes fail."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    has_file = (source / FILE).is_file()
    kinds = (AutoTokenizer, PreTrainedTokenizerFast) if has_file else (AutoTokenizer,)
    for kind in kinds if source.is_dir() else ():
        reader = _load(kind.from_pretrained, source)
        if reader is not None:
            yield JudgeTokenizer(reader, whole=has_file)


def _load(load: Callable[..., Any], source: Path) -> Any:
    """Return a tokenizer; None if transformers does not read it without code of the model's own."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of classes that differ from the file
    try:
        return load(source, local_files_only=True, trust_remote_code=False)
    except Exception:  # transformers and tokenizers raise many kinds, and bare ones
        return None
    finally:
        logging.set_verbosity(before)
