"""Steps of the CPU engine on a tiny model: caches, trees, batches, wrong items."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from specpipe.core.contracts import ROOT
from specpipe.core.engines import Item, LoadedEngine, PoolFull
from specpipe.engine.openvino.batch import Part, in_single_rows, lay_out
from specpipe.engine.openvino.blocks import BLOCK
from specpipe.engine.openvino.checks import InvalidBatch
from tests.helpers.engine_steps import (
    BRANCHES,
    PATHS,
    alone,
    fresh,
    item,
    keep,
    rooted,
    started,
)

PROMPT = [5, 9, 30, 41, 7, 100, 33]


def near(ours: np.ndarray, expected: np.ndarray, atol: float = 1e-4) -> None:
    np.testing.assert_allclose(ours, expected, atol=atol)


def test_a_chain_scores_like_one_token_at_a_time(tiny_engine: LoadedEngine) -> None:
    sequence = [*PROMPT, 11, 12, 13]
    cache = started(tiny_engine, sequence[:6])
    rows = alone(tiny_engine, item(cache, sequence[6:]))
    for n, row in enumerate(rows):
        near(row, fresh(tiny_engine, sequence[: 7 + n]))


def test_a_short_chain_over_the_end_of_a_block_scores_like_the_whole_text(
    tiny_engine: LoadedEngine,
) -> None:
    text = np.random.default_rng(4).integers(3, tiny_engine.facts.vocab_size, 70).tolist()
    items = [item(started(tiny_engine, text[:n]), text[n : n + 3]) for n in (30, 31, 62, 63, 64)]
    for one, scores in zip(items, tiny_engine.step(items), strict=True):
        for n, row in enumerate(scores.logits, len(one.cache.tokens) + 1):
            near(row, fresh(tiny_engine, text[:n]))


def test_the_rows_of_a_chain_have_the_places_of_the_chain(tiny_engine: LoadedEngine) -> None:
    """Whether attention reads them as one sequence or as a sequence each."""
    caches = [started(tiny_engine, PROMPT * 9), started(tiny_engine, PROMPT)]
    for cache in caches:
        tiny_engine.pool.reserve(cache, 4)
    tree = Part(caches[1], np.array([7, 8, 9]), np.array([-1, 0, 0]), np.array([2]))
    chain = Part(caches[0], np.array([1, 2, 3, 4]), None, np.array([0, 3]))
    whole, single = lay_out([chain, tree]), lay_out(in_single_rows([chain, tree], 4))
    assert np.diff(whole.begins).tolist() == [4, 3] and np.diff(single.begins).tolist() == [
        1
    ] * 4 + [3]
    for name in ("tokens", "wanted", "positions", "slots", "longest"):
        np.testing.assert_array_equal(getattr(single, name), getattr(whole, name), name)
    assert in_single_rows([chain, tree], 3) == [chain, tree]


def test_logits_that_somebody_holds_are_not_written_again(tiny_engine: LoadedEngine) -> None:
    """Others are: the memory of a step serves the next one of as many rows."""

    cache = started(tiny_engine, PROMPT)

    def step(*tokens: int) -> np.ndarray:
        return alone(tiny_engine, item(cache, tokens))

    first = step(4, 5)
    place, held = first.__array_interface__["data"][0], first[1:]
    before = held.copy()
    assert not np.array_equal(step(8, 9)[1:], before)
    np.testing.assert_array_equal(held, before)
    places = {step(n, n).__array_interface__["data"][0] for n in range(4, 9)}
    assert len(places) == 1 and place not in places


def test_at_least_half_of_the_rows_wanted_means_as_many_logits_as_rows(
    tiny_engine: LoadedEngine,
) -> None:
    def scored(rows: int, *wanted: int) -> list[int]:
        cache = started(tiny_engine, PROMPT)
        tiny_engine.pool.reserve(cache, rows)
        part = Part(cache, np.arange(rows), None, np.array(wanted, np.int64))
        found = lay_out([part]).scored.tolist()
        cache.release()
        return found

    assert scored(4, 2, 3) == [2, 3, 3, 3] and scored(4, 0, 1, 2, 3) == [0, 1, 2, 3]
    assert scored(5, 3, 4) == [3, 4]
    assert scored(5) == [0]


def test_every_node_of_a_tree_sees_its_ancestors_and_nothing_else(
    tiny_engine: LoadedEngine,
) -> None:
    cache = started(tiny_engine, PROMPT[:-1])
    rows = alone(tiny_engine, rooted(cache, PROMPT[-1], *BRANCHES))
    for row, path in zip(rows, ([], *PATHS), strict=True):
        near(row, fresh(tiny_engine, PROMPT + path))


def test_only_the_accepted_path_stays_in_the_cache(tiny_engine: LoadedEngine) -> None:
    cache = started(tiny_engine, PROMPT[:-1])
    alone(tiny_engine, rooted(cache, PROMPT[-1], *BRANCHES))
    keep(cache, 0, 2, 4)  # the root, 12 and 14
    assert list(cache.tokens) == [*PROMPT, 12, 14]
    near(alone(tiny_engine, item(cache, [20]))[0], fresh(tiny_engine, [*PROMPT, 12, 14, 20]))


def test_scoring_commits_nothing(tiny_engine: LoadedEngine) -> None:
    cache = started(tiny_engine, PROMPT[:-1])
    first = alone(tiny_engine, rooted(cache, PROMPT[-1], [50, 60]))
    alone(tiny_engine, rooted(cache, PROMPT[-1], [1, 2, 3, 4]))
    assert list(cache.tokens) == PROMPT[:-1]
    again = alone(tiny_engine, rooted(cache, PROMPT[-1], [50, 60]))
    np.testing.assert_array_equal(again, first)


def test_a_truncated_cache_goes_on_with_other_tokens(tiny_engine: LoadedEngine) -> None:
    cache = started(tiny_engine, [*PROMPT, 20, 21])
    for length, tokens in ((8, [22]), (8, [22, 23, 24]), (2, [PROMPT[2]]), (0, [99])):
        kept = list(cache.tokens)[:length]
        cache.truncate(length)
        near(alone(tiny_engine, item(cache, tokens))[-1], fresh(tiny_engine, kept + tokens))


def test_a_prompt_in_chunks_has_the_logits_of_the_whole_prompt(tiny: Path, make_engine) -> None:
    engine = make_engine(tiny, max_seq_len=700, prefix_cache=False)
    sequence = np.random.default_rng(1).integers(3, engine.facts.vocab_size, 600).tolist()
    whole, grown = engine.open(), engine.open()
    expected = alone(engine, item(whole, sequence, wanted=[599]))
    for begin in range(0, 600, 40):
        chunk = sequence[begin : begin + 40]
        rows = alone(engine, item(grown, chunk, wanted=[39]))
        keep(grown, *range(40))
    near(rows, expected, atol=1e-3)


def test_a_known_prefix_is_not_computed_again(tiny: Path, make_engine) -> None:
    engine = make_engine(tiny)
    sequence = np.random.default_rng(1).integers(3, engine.facts.vocab_size, 100).tolist()
    expected = alone(engine, item(one := engine.open(), sequence))
    keep(one, *range(100))
    two = engine.open(sequence)
    assert len(two.tokens) == 100 // BLOCK * BLOCK
    near(alone(engine, item(two, sequence[len(two.tokens) :])), expected[len(two.tokens) :])


def kinds_of_items(engine: LoadedEngine) -> list[Item]:
    """Return a prompt chunk, a root, a tree, and a chunk that continues over a block's end."""
    text = np.random.default_rng(2).integers(3, engine.facts.vocab_size, 200).tolist()
    return [
        item(started(engine, text[:30]), text[30:50], wanted=[0, 19]),
        item(started(engine, text[50:91]), [7]),
        rooted(started(engine, text[90:99]), 8, *BRANCHES),
        rooted(started(engine, text[100:141]), 9, BRANCHES[0], [ROOT, 0, 0, ROOT, 3]),
        item(engine.open(), text[150:187], wanted=[]),
        item(started(engine, text[190:]), [3], wanted=[0]),
    ]


def test_sequences_of_one_step_do_not_disturb_each_other(tiny_engine: LoadedEngine) -> None:
    expected = [alone(tiny_engine, one) for one in kinds_of_items(tiny_engine)]
    items = kinds_of_items(tiny_engine)
    for order in (range(6), (5, 3, 1, 4, 2, 0)):
        found = tiny_engine.step([items[i] for i in order])
        for i, scores in zip(order, found, strict=True):
            near(scores.logits, expected[i])
    # What was kept in a shared step continues like what was kept alone.
    keep(items[2].cache, 0, 2, 4)
    keep(items[0].cache, *range(20))
    after = tiny_engine.step([item(items[0].cache, [5]), item(items[2].cache, [6])])
    for one, scores, token in zip((items[0], items[2]), after, (5, 6), strict=True):
        near(scores.logits[0], fresh(tiny_engine, [*one.cache.tokens, token]))


def test_sequences_grow_side_by_side(tiny_engine: LoadedEngine) -> None:
    one, two = started(tiny_engine, PROMPT), started(tiny_engine, [8, 8, 8])
    for token in (20, 21, 22):
        tiny_engine.step([item(one, [token]), rooted(two, token, [4, 4])])
        keep(one, 0)
        keep(two, 0, 1)
    ends = tiny_engine.step([item(one, [3]), item(two, [3])])
    for cache, scores in zip((one, two), ends, strict=True):
        near(scores.logits[0], fresh(tiny_engine, [*cache.tokens, 3]))


def test_scores_outlive_the_next_step(tiny_engine: LoadedEngine) -> None:
    cache = started(tiny_engine, PROMPT)
    (scores,) = tiny_engine.step([item(cache, [1, 2])])
    logits, hidden = scores.logits.copy(), scores.hidden.copy()
    tiny_engine.step([item(cache, [3, 4])])
    np.testing.assert_array_equal(scores.logits, logits)
    np.testing.assert_array_equal(scores.hidden, hidden)


def test_hidden_states_give_the_logits(tiny_engine: LoadedEngine, tiny: Path) -> None:
    from safetensors.torch import load_file

    table = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"].float().numpy()
    (result,) = tiny_engine.step([item(tiny_engine.open(), [*PROMPT, 11], wanted=[6, 7])])
    assert result.hidden is not None and result.hidden.shape == (2, 64)
    near(result.hidden @ table.T, result.logits, atol=1e-3)


def test_bfloat16_stays_near_float32(tiny: Path, tiny_engine, make_engine) -> None:
    engine = make_engine(tiny, "bfloat16")
    expected, rows = fresh(tiny_engine, PROMPT), alone(engine, item(engine.open(), PROMPT))
    assert rows.shape == (7, engine.facts.vocab_size)
    assert np.abs(rows[-1] - expected).mean() < 0.05 * np.abs(expected).mean() + 0.2


@pytest.mark.parametrize(("quantization", "bound"), [("int8", 0.1), ("int4", 0.6)])
def test_quantised_weights_stay_near_float32(
    quantization: str, bound: float, tiny: Path, tiny_engine, make_engine
) -> None:
    engine = make_engine(tiny, "float32", quantization)
    expected, got = fresh(tiny_engine, PROMPT), fresh(engine, PROMPT)
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert 0 < error < bound


def test_a_full_pool_changes_nothing(tiny: Path, make_engine) -> None:
    engine = make_engine(tiny, max_batch_size=1, draft_nodes=0, max_seq_len=64, kv_cache_tokens=64)
    cache, other = started(engine, PROMPT * 5), engine.open()
    items = [item(cache, [4]), item(other, PROMPT * 10)]
    assert not engine.fits(items)
    with pytest.raises(PoolFull, match="no room"):
        engine.step(items)
    assert list(cache.tokens) == PROMPT * 5
    assert engine.fits(items[:1])
    near(alone(engine, items[0])[0], fresh(make_engine(tiny), [*PROMPT * 5, 4]))


WRONG: list[tuple[str, Sequence[int], Sequence[int] | None, Sequence[int] | None]] = [
    ("has no rows", [], None, []),
    ("wanted row is not among 2", [1, 2], None, [2]),
    ("wanted row is not among 2", [1, 2], None, [-1]),
    ("not in the vocabulary", [1, 10**6], None, None),
    ("not in the vocabulary", [-1], None, None),
    ("more or fewer parents", [1, 2], [ROOT], None),
    ("does not come before", [1, 2, 3], [ROOT, 2, 0], None),
    ("a parent is no row", [1, 2], [ROOT, -2], None),
]


@pytest.mark.parametrize(("words", "tokens", "parents", "wanted"), WRONG)
def test_a_wrong_item_is_refused(
    words: str,
    tokens: Sequence[int],
    parents: Sequence[int] | None,
    wanted: Sequence[int] | None,
    tiny_engine: LoadedEngine,
) -> None:
    with pytest.raises(InvalidBatch, match=words):
        tiny_engine.step([item(tiny_engine.open(), tokens, parents, wanted)])


def test_two_items_of_one_cache_are_refused(tiny_engine: LoadedEngine) -> None:
    cache = tiny_engine.open()
    with pytest.raises(InvalidBatch, match="the same cache"):
        tiny_engine.step([item(cache, [1]), item(cache, [2])])


def test_tables_that_would_crash_the_process_are_refused(tiny_engine: LoadedEngine) -> None:
    def refuses(words: str, table: list[int], *others: Item) -> None:
        cache = started(tiny_engine, PROMPT)
        honest, cache.table = cache.table, lambda rows: table or others[0].cache.table(1)
        with pytest.raises(InvalidBatch, match=words):
            tiny_engine.step([item(cache, [1]), *others])
        cache.table = honest
        cache.release()

    refuses("not among", [10**6])
    refuses("not among", [-1])
    refuses("two users", [], item(started(tiny_engine, PROMPT), [1]))
