"""Which rows a lane keeps, drops and runs, on an engine that enforces the rules of its caches."""

from collections.abc import Sequence

import numpy as np
import pytest

from specpipe.core.contracts import EMPTY, ROOT, Draft, Logits, chain
from specpipe.core.engines import Item
from specpipe.runtime.lane import Lane
from specpipe.speculate.history import History
from tests.helpers.scripted_engine import ProtocolError, ScriptedCache, ScriptedEngine
from tests.helpers.scripted_model import ScriptedModel, random_distribution

VOCAB = 10
TARGET = random_distribution(VOCAB, seed=1)
PROMPT = [1, 2, 3, 4]
#   root -> 5 -> 7
#        -> 6 -> 8 -> 9
TREE = Draft(np.array([5, 6, 7, 8, 9]), np.array([ROOT, ROOT, 0, 1, 3]))


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(TARGET, VOCAB)


def score(lane: Lane, tokens: Sequence[int], draft: Draft = EMPTY) -> Logits:
    """Run one whole item and return its logits, which must be those of the distribution."""
    lane.follow(tokens)
    item = lane.whole(draft)
    (scores,) = lane.engine.step([item])
    lane.done(item)
    expected = ScriptedModel(TARGET).score(tokens, draft)
    np.testing.assert_array_equal(scores.logits, expected.logits)
    return scores.logits


def last_tokens(engine: ScriptedEngine) -> list[int]:
    """Return the tokens of the last step."""
    (item,) = engine.steps[-1]
    return item.tokens.tolist()


def kept(lane: Lane) -> list[int]:
    assert lane.cache is not None
    return list(lane.cache.tokens)


def test_the_first_step_runs_the_prompt_and_wants_its_root_and_draft(
    engine: ScriptedEngine,
) -> None:
    lane = Lane(engine)
    score(lane, PROMPT, chain([5, 6]))
    (item,) = engine.steps[0]
    assert item.tokens.tolist() == [1, 2, 3, 4, 5, 6] and item.parents is None
    assert item.wanted.tolist() == [3, 4, 5]


def test_a_tree_hangs_under_the_root(engine: ScriptedEngine) -> None:
    lane = Lane(engine)
    score(lane, PROMPT, TREE)
    (item,) = engine.steps[0]
    assert item.parents is not None
    assert item.parents.tolist() == [-1, 0, 1, 2, 3, 3, 4, 5, 7]


def test_rows_of_an_accepted_path_are_kept(engine: ScriptedEngine) -> None:
    lane = Lane(engine)
    score(lane, PROMPT, TREE)
    score(lane, [*PROMPT, 6, 8, 2])
    assert last_tokens(engine) == [2] and kept(lane) == [*PROMPT, 6, 8]


def test_rows_of_a_rejected_draft_are_dropped(engine: ScriptedEngine) -> None:
    lane = Lane(engine)
    score(lane, PROMPT, TREE)
    score(lane, [*PROMPT, 9], chain([5]))
    assert last_tokens(engine) == [9, 5] and kept(lane) == PROMPT


def test_the_row_of_the_root_runs_again_only_if_its_logits_are_wanted_again(
    engine: ScriptedEngine,
) -> None:
    """An answer that ends with a draft token: the next one goes on from a token that has a row."""
    lane = Lane(engine)
    score(lane, PROMPT, TREE)
    score(lane, [*PROMPT, 6, 8])
    assert last_tokens(engine) == [8] and kept(lane) == [*PROMPT, 6]
    score(lane, [*PROMPT, 6, 8])
    assert last_tokens(engine) == [8]


def test_a_token_of_the_answer_that_no_row_was_computed_for_is_pending(
    engine: ScriptedEngine,
) -> None:
    lane = Lane(engine)
    score(lane, PROMPT, chain([5, 6]))
    score(lane, [*PROMPT, 5, 9, 9, 3])
    assert last_tokens(engine) == [9, 9, 3]


def test_another_sequence_keeps_the_common_beginning(engine: ScriptedEngine) -> None:
    lane = Lane(engine)
    score(lane, [*PROMPT, 5, 6])
    score(lane, [*PROMPT, 7, 8, 9])
    assert last_tokens(engine) == [7, 8, 9] and kept(lane) == PROMPT
    score(lane, [9, 9])
    assert last_tokens(engine) == [9, 9] and kept(lane) == []
    assert len(engine.live) == 1


def test_a_shorter_sequence_forgets_the_rows_behind_it(engine: ScriptedEngine) -> None:
    lane = Lane(engine)
    score(lane, [*PROMPT, 5, 6])
    score(lane, [*PROMPT, 5, 6, 7])
    score(lane, PROMPT)
    assert last_tokens(engine) == [4] and kept(lane) == [1, 2, 3]
    score(lane, PROMPT[:1])
    assert last_tokens(engine) == [1] and kept(lane) == []


def test_rows_of_a_draft_are_not_those_of_another_sequence(engine: ScriptedEngine) -> None:
    """The draft 5 was scored after 4; the same token after another prefix has another row."""
    lane = Lane(engine)
    score(lane, PROMPT, chain([5, 6]))
    score(lane, [1, 2, 9, 5, 6])
    assert last_tokens(engine) == [9, 5, 6]


def test_a_prompt_is_read_in_chunks_whose_logits_nobody_wants(engine: ScriptedEngine) -> None:
    lane, prompt = Lane(engine), list(range(1, 10))
    lane.follow(prompt)
    for count in (4, 3):
        chunk = lane.chunk(count)
        (scores,) = engine.step([chunk])
        lane.done(chunk)
        assert len(scores.logits) == 0 and chunk.parents is None
    assert lane.pending == [8, 9] and kept(lane) == prompt[:7]
    score(lane, prompt, chain([5]))
    assert last_tokens(engine) == [8, 9, 5]


def test_the_root_runs_again_if_a_chunk_had_it(engine: ScriptedEngine) -> None:
    lane = Lane(engine)
    lane.follow(PROMPT)
    chunk = lane.chunk(len(PROMPT))
    engine.step([chunk])
    lane.done(chunk)
    assert lane.pending == [] and kept(lane) == PROMPT
    score(lane, PROMPT, chain([5]))
    assert last_tokens(engine) == [4, 5] and kept(lane) == PROMPT[:-1]


def test_what_is_released_resumes_from_the_prefix_that_is_known(engine: ScriptedEngine) -> None:
    lane = Lane(engine)
    score(lane, PROMPT)
    score(lane, [*PROMPT, 5])
    assert lane.holds_rows
    lane.release()
    assert engine.live == [] and not lane.holds_rows
    score(lane, [*PROMPT, 5, 6], TREE)
    assert last_tokens(engine)[:2] == [5, 6] and kept(lane) == PROMPT
    lane.release()
    lane.release()  # nothing is left to release


def test_only_whole_blocks_are_found_again() -> None:
    engine = ScriptedEngine(TARGET, VOCAB, block=4)
    lane = Lane(engine)
    score(lane, [*PROMPT, 5, 6])
    score(lane, [*PROMPT, 5, 6, 7])
    lane.release()
    score(lane, [*PROMPT, 5, 6, 7])
    assert last_tokens(engine) == [5, 6, 7]


def test_the_last_token_is_never_taken_from_a_known_prefix(engine: ScriptedEngine) -> None:
    lane = Lane(engine)
    for tokens in ([*PROMPT, 5], [*PROMPT, 5, 6]):
        score(lane, tokens)
    lane.release()
    score(lane, PROMPT)
    assert last_tokens(engine) == [4]


def test_lanes_of_one_engine_share_its_steps(engine: ScriptedEngine) -> None:
    lanes, sequences = [Lane(engine) for _ in range(3)], [[1, 2], [3], [4, 5, 6]]
    items: list[Item] = []
    for lane, tokens in zip(lanes, sequences, strict=True):
        lane.follow(tokens)
        items.append(lane.whole(TREE))
    found = engine.step(items)
    for lane, item, tokens, scores in zip(lanes, items, sequences, found, strict=True):
        lane.done(item)
        expected = ScriptedModel(TARGET).score(tokens, TREE)
        np.testing.assert_array_equal(scores.logits, expected.logits)
        score(lane, [*tokens, 6, 8, 9, 1])
        assert last_tokens(engine) == [1]


@pytest.mark.parametrize("seed", range(20))
def test_logits_are_right_after_any_succession_of_sequences(seed: int) -> None:
    """Random accepted paths, rewinds, switches, chunks and releases: a wrong row would show."""
    rng = np.random.default_rng(seed)
    engine = ScriptedEngine(TARGET, VOCAB, block=int(rng.integers(1, 4)))
    lane, tokens = Lane(engine), rng.integers(0, VOCAB, 6).tolist()
    for _ in range(60):
        draft = random_tree(rng)
        if rng.random() < 0.2:
            read_some(lane, tokens, rng)
        score(lane, tokens, draft)
        move = rng.random()
        if move < 0.6:
            tokens += [*random_path(draft, rng), int(rng.integers(VOCAB))]
        elif move < 0.8:
            tokens = tokens[: int(rng.integers(1, len(tokens) + 1))]
        elif move < 0.9:
            lane.release()
        else:
            tokens = [*tokens[:3], *rng.integers(0, VOCAB, 5).tolist()]


def random_tree(rng: np.random.Generator) -> Draft:
    """Return a tree in which siblings may be equal."""
    size = int(rng.integers(0, 6))
    parents = [int(rng.integers(-1, node)) if node else ROOT for node in range(size)]
    return Draft(rng.integers(0, 4, size), np.array(parents, np.int64))


def random_path(draft: Draft, rng: np.random.Generator) -> list[int]:
    path, at = list[int](), ROOT
    while len(below := np.flatnonzero(draft.parents == at)) and rng.random() < 0.8:
        at = int(rng.choice(below))
        path.append(int(draft.tokens[at]))
    return path


def read_some(lane: Lane, tokens: Sequence[int], rng: np.random.Generator) -> None:
    lane.follow(tokens)
    if len(lane.pending) > 1:
        chunk = lane.chunk(int(rng.integers(1, 1 + len(lane.pending))))
        lane.engine.step([chunk])
        lane.done(chunk)


# --- the engine of these tests notices broken rules -----------------------------------------------


def written(engine: ScriptedEngine, draft: Draft) -> ScriptedCache:
    cache = engine.open()
    engine.step([Item(cache, draft.tokens, draft.parents, np.arange(len(draft)))])
    return cache


@pytest.mark.parametrize("rows", [[1, 2], [0, 1], [0, 3], [5], [2]], ids=str)
def test_only_a_path_of_written_rows_can_be_kept(engine: ScriptedEngine, rows: list[int]) -> None:
    with pytest.raises(ProtocolError, match="keep: row"):
        written(engine, TREE).keep(np.array(rows))


def test_rows_are_kept_once_and_not_after_others_or_none(engine: ScriptedEngine) -> None:
    once, rewound = written(engine, TREE), written(engine, TREE)
    once.keep(np.array([0, 2]))
    assert once.tokens == [5, 7]
    rewound.truncate(0)
    for cache in (once, rewound, engine.open()):
        with pytest.raises(ProtocolError, match="no rows were written"):
            cache.keep(np.array([0]))


def test_a_released_cache_cannot_be_used(engine: ScriptedEngine) -> None:
    cache = written(engine, TREE)
    cache.release()
    uses = [
        lambda: cache.keep(np.array([0])),
        lambda: cache.truncate(0),
        cache.release,
        lambda: engine.step([Item(cache, np.array([1]), None, np.array([0]))]),
    ]
    for use in uses:
        with pytest.raises(ProtocolError, match="released"):
            use()


def test_a_step_runs_every_cache_once(engine: ScriptedEngine) -> None:
    item = Item(engine.open(), np.array([1]), None, np.array([0]))
    with pytest.raises(ProtocolError, match="twice"):
        engine.step([item, item])
    assert engine.steps == []


class Growing(list[int]):
    """Tokens of which only the last ones may be read."""

    def __getitem__(self, index):
        first = index.indices(len(self))[0] if isinstance(index, slice) else index % len(self)
        assert first >= len(PROMPT) - 1, "the whole sequence was read again"
        return super().__getitem__(index)


def test_a_history_that_became_longer_is_not_compared_again(engine: ScriptedEngine) -> None:
    lane, history = Lane(engine), History(PROMPT)
    score(lane, history)
    lane.follow(history)  # keeps the rows of the prompt
    history.committed.tokens = Growing(PROMPT)
    for token in (5, 6, 7):
        history.extend([token])
        lane.follow(history)
        assert lane.pending == [4, 5, 6, 7][: len(history) - 3]


def test_another_history_is_compared(engine: ScriptedEngine) -> None:
    """Two branches of one text: the rows of the other one are dropped."""
    lane, one, other = Lane(engine), History([*PROMPT, 5, 6]), History([*PROMPT, 7, 8])
    for history in (one, other, one):
        score(lane, history, chain([9]))
    history.extend([3])
    for path in ([1], [2]):
        score(lane, history + path)
    score(lane, [*PROMPT, 2])
    score(lane, history)
