"""The C++ backend's rules, which its emulators follow; the messages are TensorRT-LLM's."""

from typing import Any

import numpy as np
import pytest

from specpipe.core.errors import ConfigError, Unsupported
from specpipe.runtime.failures import EngineError
from specpipe.runtime.triton.upstream_rules import (
    asked_limit,
    check_draft,
    check_streaming,
    echo,
)

PROMPT = (5, 6)


def tensors(**values: Any) -> dict[str, np.ndarray]:
    return {name: np.array([[value]]) for name, value in values.items()}


def sizes(window: int, ngram: int, verified: int) -> dict[str, np.ndarray]:
    return tensors(
        lookahead_window_size=window,
        lookahead_ngram_size=ngram,
        lookahead_verification_set_size=verified,
    )


def test_only_a_decoupled_model_streams() -> None:
    check_streaming(tensors(streaming=True), decoupled=True)
    check_streaming(tensors(streaming=False), decoupled=False)
    check_streaming({}, decoupled=False)
    with pytest.raises(EngineError, match="Streaming is only supported if model is deployed") as e:
        check_streaming(tensors(streaming=True), decoupled=False)
    assert e.value.code == "INTERNAL"


def test_a_whole_answer_begins_with_the_prompt_and_a_stream_never_does() -> None:
    assert echo({}, PROMPT) == PROMPT
    assert echo(tensors(exclude_input_in_output=False, streaming=False), PROMPT) == PROMPT
    assert echo(tensors(exclude_input_in_output=True), PROMPT) == ()
    assert echo(tensors(exclude_input_in_output=False, streaming=True), PROMPT) == ()


def test_a_draft_is_at_most_as_long_as_the_engine_allows() -> None:
    check_draft((1, 2, 3), 3)
    with pytest.raises(EngineError, match=r"tokens \(4\) is larger than maximum .* \(3\)"):
        check_draft((1, 2, 3, 4), 3)


@pytest.mark.parametrize("carrier", [None, "lookahead"])
def test_a_parameter_that_the_backend_does_not_know_is_ignored(carrier: Any) -> None:
    for value in (0, 7, "x", True):
        assert asked_limit({}, {"num_draft_tokens": value}, carrier) is None


def test_the_cpu_engine_takes_the_parameter() -> None:
    assert asked_limit({}, {"num_draft_tokens": 0}, "parameter") == 0
    assert asked_limit({}, {}, "parameter") is None
    for value in ("x", True, 1.5):
        with pytest.raises(ConfigError, match="parameter num_draft_tokens is .*: must be a whole"):
            asked_limit({}, {"num_draft_tokens": value}, "parameter")


def test_a_lookahead_engine_is_turned_off_by_its_sizes_and_no_other_engine_takes_them() -> None:
    assert asked_limit(sizes(1, 1, 0), {}, "lookahead") == 0
    with pytest.raises(Unsupported, match=r"\[2, 2, 1\]: only 1, 1, 0"):
        asked_limit(sizes(2, 2, 1), {}, "lookahead")
    with pytest.raises(EngineError, match="Cannot set the request lookahead decoding"):
        asked_limit(sizes(1, 1, 0), {}, None)
