"""A guide: which texts a constrained answer may have. The kinds are those of TensorRT-LLM's tensors
`guided_decoding_guide_type` and `guided_decoding_guide`.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from specpipe.core.errors import ConfigError

GuideKind = Literal["json", "json_schema", "regex", "ebnf_grammar"]
KINDS: tuple[GuideKind, ...] = get_args(GuideKind)
# Between two tokens of JSON. Without a bound, a small model may write line breaks for ever.
WHITESPACE = r"( |\n[ \t]{0,40})"
MOST_BYTES = 1 << 16  # of a schema, an expression or a grammar


@dataclass(frozen=True)
class Guide:
    """What an answer must match as a whole. `json` is any JSON value and has no text."""

    kind: GuideKind
    text: str = ""


def guide_of(kind: str, text: str) -> Guide:
    """Return a guide of a request; raises ConfigError for an unknown kind, or for its text.

    The text itself is read where it is compiled.
    """
    known = next((name for name in KINDS if name == kind), None)
    if known is None:
        raise ConfigError(
            f"guided_decoding_guide_type is {kind!r}: must be one of {', '.join(KINDS)}"
        )
    size = len(text.encode())
    if size > MOST_BYTES:
        raise ConfigError(f"guided_decoding_guide has {size} bytes: at most {MOST_BYTES} are taken")
    if known != "json" and not text.strip():
        raise ConfigError(f"guided_decoding_guide is empty: the type {known} needs one")
    if known == "json" and text.strip():
        raise ConfigError(
            "guided_decoding_guide is given: the type json takes none", hint="use json_schema"
        )
    return Guide(known, text if known != "json" else "")
