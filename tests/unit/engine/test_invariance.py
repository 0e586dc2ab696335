"""Batch-invariant engines: the bits of a row do not depend on what else is in a call."""

from pathlib import Path

import numpy as np
import pytest

from specpipe.core.engines import LoadedEngine
from specpipe.engine.openvino.batch import Part
from specpipe.engine.openvino.blocks import BlockPool
from specpipe.engine.openvino.invariance import RowLimits, find_limits, split
from tests.helpers.engine_steps import item, keep, rooted, started
from tests.helpers.models import make_llama

LENGTH = 40
PRECISIONS = [
    ("float32", "none"),
    ("bfloat16", "none"),
    ("bfloat16", "int8"),
    ("float32", "int8"),
]


@pytest.fixture(scope="module", params=PRECISIONS, ids=" ".join)
def engine(request: pytest.FixtureRequest, tiny: Path, make_engine) -> LoadedEngine:
    dtype, quantization = request.param
    return make_engine(tiny, dtype, quantization, batch_invariant=True, prefix_cache=False)


def texts(engine: LoadedEngine) -> list[list[int]]:
    rng = np.random.default_rng(4)
    return [rng.integers(3, engine.facts.vocab_size, LENGTH).tolist() for _ in range(4)]


def in_chunks(
    engine: LoadedEngine, some: list[list[int]], sizes: tuple[int, ...]
) -> list[np.ndarray]:
    """Return the logits [LENGTH, V] of texts that run together; `sizes` of chunks take turns."""
    caches = [engine.open() for _ in some]
    rows: list[list[np.ndarray]] = [[] for _ in some]
    step = 0
    while any(len(cache.tokens) < LENGTH for cache in caches):
        live = [i for i, cache in enumerate(caches) if len(cache.tokens) < LENGTH]
        chunks = []
        for i in live:
            begin = len(caches[i].tokens)
            chunks.append(some[i][begin : begin + sizes[(step + i) % len(sizes)]])
        found = engine.step([item(caches[i], c) for i, c in zip(live, chunks, strict=True)])
        for i, chunk, scores in zip(live, chunks, found, strict=True):
            rows[i].append(scores.logits)
            keep(caches[i], *range(len(chunk)))
        step += 1
    return [np.concatenate(some_rows) for some_rows in rows]


def test_rows_have_the_same_bits_in_any_chunks_beside_any_others(engine: LoadedEngine) -> None:
    some = texts(engine)
    one_by_one = [in_chunks(engine, [text], (1,))[0] for text in some]
    for sizes in ((1,), (LENGTH,), (1, 7, 2), (5, 1, 17), (8,)):
        for ours, expected in zip(in_chunks(engine, some, sizes), one_by_one, strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_roots_and_main_chains_of_trees_have_the_bits_of_plain_decoding(
    engine: LoadedEngine,
) -> None:
    text = texts(engine)[0][:30]
    expected = in_chunks(engine, [texts(engine)[0]], (1,))[0]
    cache, other = started(engine, text[:20]), started(engine, text[:7])
    chain, side = text[21:24], [9, 8, 7]
    tree = rooted(cache, text[20], [*chain, *side], [-1, 0, 1, -1, 3, 0])
    scores = engine.step([item(other, [3]), tree])[1]
    np.testing.assert_array_equal(scores.logits[:4], expected[20:24])


def test_large_steps_have_the_bits_of_small_ones(tmp_path: Path, make_engine) -> None:
    """With 16-bit weights of this width, a CPU with AVX2 alone has another kernel for 81 rows."""
    sizes = {"hidden_size": 256, "intermediate_size": 704}
    folder = make_llama(tmp_path / "wide", seed=1, **sizes)
    engine = make_engine(folder, "bfloat16", batch_invariant=True, prefix_cache=False)
    text = np.random.default_rng(1).integers(3, engine.facts.vocab_size, 170).tolist()
    (scores,) = engine.step([item(whole := engine.open(), text)])
    keep(whole, *range(170))
    small = engine.open()
    for begin in range(0, 170, 34):
        (part,) = engine.step([item(small, text[begin : begin + 34])])
        np.testing.assert_array_equal(part.logits, scores.logits[begin : begin + 34])
        keep(small, *range(34))
    ends = engine.step([item(whole, [5]), item(small, [5])])
    np.testing.assert_array_equal(ends[0].logits, ends[1].logits)


def test_limits_are_the_row_counts_with_equal_bits() -> None:
    def kernel(below: int, above: int):
        return lambda count: np.full((count, 2), float(count < below or count > above))

    assert find_limits(kernel(0, 1000), 500) == RowLimits(1, 256)
    assert find_limits(kernel(5, 80), 500) == RowLimits(5, 80)
    assert find_limits(kernel(5, 80), 63) == RowLimits(5, 32)
    assert find_limits(kernel(12, 16), 500) == RowLimits(16, 16)


def test_a_step_is_split_into_calls_with_few_rows() -> None:
    cache = BlockPool(1, storage=None).open()  # type: ignore[arg-type]

    def part(count: int, wanted: list[int], tree: list[int] | None = None) -> Part:
        parents = None if tree is None else np.array(tree)
        return Part(cache, np.arange(count), parents, np.array(wanted))

    long, tree, short = part(25, [0, 9, 10, 24]), part(4, [3], [-1, -1, 0, 0]), part(2, [1])
    calls = split([long, tree, short], 10)
    found = [
        [(p.before, p.tokens.tolist(), p.wanted.tolist(), p.tree is not None) for p in call]
        for call in calls
    ]
    assert found == [
        [(0, list(range(10)), [0, 9], False)],
        [(10, list(range(10, 20)), [0], False)],
        [(20, list(range(20, 25)), [4], False), (0, [0, 1, 2, 3], [3], True), (0, [0], [], False)],
        [(1, [1], [0], False)],
    ]
