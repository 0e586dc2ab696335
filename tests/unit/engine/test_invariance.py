"""Batch-invariant engines: the bits of a row do not depend on what else is in a call."""

from pathlib import Path

import numpy as np
import pytest

from specpipe.contracts import LoadedEngine
from tests.unit.engine.stepping import item, keep, rooted, started

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
