"""A temperature works as in other servers; TensorRT-LLM ignores it without top_k and top_p."""

import pytest

from specpipe.cli.sampling import Flags, to_upstream


def samples(top_k: int | None, top_p: float | None) -> bool:
    """Tell what TensorRT-LLM does with a request: the rule in docs/serving.md."""
    return (top_k or 0) > 1 or (not top_k and (top_p or 0) > 0)


@pytest.mark.parametrize(
    ("flags", "sampled", "sent"),
    [
        ((None, None, None), False, None),
        ((0.7, None, None), True, 0.7),
        ((0.0, None, None), False, None),
        ((0.0, 40, 0.9), False, None),
        ((0.7, 1, None), False, 0.7),
        ((0.7, None, 0.9), True, 0.7),
        ((0.7, 40, None), True, 0.7),
        ((None, 40, None), True, None),
        ((None, None, 0.9), True, None),
    ],
)
def test_a_temperature_alone_samples_and_zero_is_greedy(
    flags: Flags, sampled: bool, sent: float | None
) -> None:
    temperature, top_k, top_p = to_upstream(*flags)
    assert samples(top_k, top_p) is sampled and temperature == sent


def test_the_whole_distribution_is_sampled_where_nothing_cuts_it() -> None:
    assert to_upstream(0.7, None, None) == (0.7, None, 1.0)
