import numpy as np
import pytest

from specpipe.core.errors import ConfigError
from specpipe.core.guide import MOST_BYTES, Guide
from specpipe.runtime.triton.guides import read_guide


def tensors(kind: str | None = None, text: str | None = None) -> dict[str, np.ndarray]:
    given = {"guided_decoding_guide_type": kind, "guided_decoding_guide": text}
    return {
        name: np.array([[value.encode()]], object)
        for name, value in given.items()
        if value is not None
    }


def test_a_guide_has_a_type_and_a_text() -> None:
    assert read_guide(tensors("regex", "a+")) == Guide("regex", "a+")
    assert read_guide(tensors("json")) == read_guide(tensors("json", "")) == Guide("json")


def test_empty_tensors_are_no_guide() -> None:
    assert read_guide({}) is None and read_guide(tensors("", "")) is None


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("yaml", "x", "is 'yaml': must be one of json, json_schema, regex, ebnf_grammar"),
        ("regex", None, "guided_decoding_guide is empty: the type regex needs one"),
        ("json", "{}", "the type json takes none"),
        (None, "{}", "without guided_decoding_guide_type"),
        ("regex", "a" * (MOST_BYTES + 1), "has 65537 bytes: at most 65536"),
    ],
)
def test_a_wrong_guide_is_refused(kind: str | None, text: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_guide(tensors(kind, text))
