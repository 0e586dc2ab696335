"""A tokenizer.json as it is served: the rules of the file, and what the files next to it add.

transformers resets the truncation and the padding that such a file carries, and so does `prepare`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

FILE = "tokenizer.json"
_BEFORE, _AFTER = "BEFORE", "AFTER"  # names within the template; any would do


@dataclass(frozen=True)
class ExtraToken:
    """A token that a file next to tokenizer.json adds to it."""

    content: str
    special: bool = False
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class Additions:
    """What the files next to a tokenizer.json change in it."""

    tokens: tuple[ExtraToken, ...] = ()  # in the order of their ids, which follow those of the file
    around: tuple[tuple[int, ...], tuple[int, ...]] | None = None  # ids before and after a text
    splits_special: bool = False  # special tokens in a text are read as its other characters are

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Additions":
        """Return what `dataclasses.asdict` made JSON of; raises TypeError for other values."""
        around = values.get("around")
        return Additions(
            tuple(ExtraToken(**token) for token in values.get("tokens", ())),
            None if around is None else (tuple(around[0]), tuple(around[1])),
            bool(values.get("splits_special")),
        )


def read_tokenizer_json(content: bytes) -> Tokenizer:
    """Return the tokenizer of a file's bytes, which never cuts or pads a text.

    Raises ValueError if tokenizers cannot read it.
    """
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(str(error)) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def extend(tokenizer: Tokenizer, additions: Additions) -> Tokenizer:
    """Apply `additions` to the tokenizer of the file, and return it."""
    tokenizer.add_tokens(
        [
            AddedToken(
                token.content,
                special=token.special,
                normalized=token.normalized,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                single_word=token.single_word,
            )
            for token in additions.tokens
        ]
    )
    if additions.around is not None:
        tokenizer.post_processor = _template(tokenizer, *additions.around)
    tokenizer.encode_special_tokens = additions.splits_special
    return tokenizer


def _template(tokenizer: Tokenizer, before: tuple[int, ...], after: tuple[int, ...]) -> Any:
    """Return the post-processor that puts ids before and after a text, as transformers makes it."""
    parts = {_BEFORE: before, _AFTER: after}
    special = [
        {"id": name, "ids": list(ids), "tokens": [tokenizer.id_to_token(i) for i in ids]}
        for name, ids in parts.items()
        if ids
    ]
    begin = [f"{_BEFORE}:0"] if before else []
    end = [f"{_AFTER}:0"] if after else []
    single = [*begin, "$A:0", *end]
    pair = [*single, *(part.replace(":0", ":1") for part in [*begin, "$B:0", *end])]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
