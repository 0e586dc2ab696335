"""An EAGLE-3 drafter in the CPU engine: the arithmetic of the format, for drafts of any shape."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from specpipe.core.contracts import EMPTY, ROOT, Draft, Extensions
from specpipe.core.engines import Branch, Cache, LoadedEngine
from specpipe.core.errors import Unsupported
from specpipe.core.trees import WIDTH
from specpipe.engine.openvino import layer_drafter
from tests.helpers.eagle3 import OUTPUT, TABLE, Eagle3Reference, make_eagle3
from tests.helpers.engine_steps import item, keep, rooted, started

PROMPT = [5, 9, 40, 41, 42, 9, 40, 7, 3, 200, 17]
KINDS = {
    "speculators": {},
    "midlayer": {"layout": "midlayer"},
    "normed residual": {"norm_before_residual": True},
    "normed output": {"norm_output": True},
    "own embedding": {"own": (TABLE, OUTPUT, "d2t")},
    "target's head": {"own": (), "draft_vocab_size": 320},
    "another shape": {"num_key_value_heads": 4, "head_dim": 32, "intermediate_size": 40},
}


def after(
    engine: LoadedEngine, cache: Cache, root: int, paths: Sequence[Sequence[int]] = ()
) -> list[Extensions]:
    """Return the predictions after the root, then after the nodes of each level of paths."""
    branch = Branch(cache, root, EMPTY, [], np.array([ROOT]))
    found = engine.predict([branch])
    nodes, states = [(), *sorted(map(tuple, paths), key=len)], {(): found[0].states[0]}
    for depth in range(1, max(map(len, nodes)) + 1):
        run = [path for path in nodes if 0 < len(path) <= depth]
        wanted = [n for n, path in enumerate(run) if len(path) == depth]
        branch = Branch(cache, root, as_tree(run), [states[p[:-1]] for p in run], np.array(wanted))
        found += engine.predict([branch])
        states |= {run[n]: s for n, s in zip(wanted, found[-1].states, strict=True)}
    return found


def as_tree(paths: Sequence[tuple[int, ...]]) -> Draft:
    places = {path: n for n, path in enumerate(paths)}
    parents = [places.get(path[:-1], ROOT) for path in paths]
    return Draft(np.array([path[-1] for path in paths]), np.array(parents))


def require_like(
    reference: Eagle3Reference,
    found: Sequence[Extensions],
    sequence: Sequence[int],
    paths: Sequence[Sequence[int]] = (),
    tolerance: float = 2e-5,
) -> None:
    """Compare the answers of `after` with the reference, in the order of `paths`."""
    rows = [row for one in found for row in zip(one.tokens, one.probs, strict=True)]
    for (tokens, probs), path in zip(rows, [(), *paths], strict=True):
        expected = reference.probabilities(sequence, path).numpy()
        assert len(tokens) == WIDTH
        np.testing.assert_allclose(probs, expected[tokens], atol=tolerance)
        np.testing.assert_allclose(probs, np.sort(expected)[::-1][:WIDTH], atol=tolerance)


@pytest.fixture(scope="module")
def drafter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_eagle3(tmp_path_factory.mktemp("drafter"))


@pytest.fixture(scope="module")
def reference(drafter: Path, tiny: Path) -> Eagle3Reference:
    return Eagle3Reference(drafter, tiny)


@pytest.fixture(scope="module")
def engine(drafter: Path, tiny: Path, make_engine) -> LoadedEngine:
    return make_engine(tiny, eagle3=drafter)


CHAIN = [[30], [30, 31], [30, 31, 32]]
TREE = [[30], [50], [30, 31], [30, 60], [50, 30], [30, 60, 9], [50, 30, 9]]


@pytest.mark.parametrize("kind", KINDS)
def test_three_draft_steps_are_those_of_the_format(
    kind: str, tiny: Path, make_engine, tmp_path: Path
) -> None:
    folder = make_eagle3(tmp_path, **KINDS[kind])
    engine = make_engine(tiny, eagle3=folder)
    found = after(engine, started(engine, PROMPT[:-1]), PROMPT[-1], CHAIN)
    require_like(Eagle3Reference(folder, tiny), found, PROMPT, CHAIN)


def test_nodes_see_their_ancestors_and_not_their_siblings(
    engine: LoadedEngine, reference: Eagle3Reference
) -> None:
    found = after(engine, started(engine, PROMPT[:-1]), PROMPT[-1], TREE)
    require_like(reference, found, PROMPT, TREE)


def test_sequences_are_predicted_together_as_one_at_a_time(
    engine: LoadedEngine, reference: Eagle3Reference
) -> None:
    texts = [PROMPT, PROMPT[3:], [1, 2], PROMPT * 4]
    caches = [started(engine, text[:-1]) for text in texts]
    roots = [
        Branch(c, t[-1], EMPTY, [], np.array([ROOT])) for c, t in zip(caches, texts, strict=True)
    ]
    for text, found in zip(texts, engine.predict(roots), strict=True):
        require_like(reference, [found], text)


def test_it_follows_accepted_branches_and_rewound_texts(
    engine: LoadedEngine, reference: Eagle3Reference
) -> None:
    cache = started(engine, PROMPT[:-1])
    after(engine, cache, PROMPT[-1], TREE)
    engine.step([rooted(cache, PROMPT[-1], [30, 50, 60], [ROOT, ROOT, 1])])
    keep(cache, 0, 2, 3)
    sequence = [*PROMPT, 50, 60, 8]
    require_like(reference, after(engine, cache, 8, CHAIN), sequence, CHAIN)
    cache.truncate(len(PROMPT))
    require_like(reference, after(engine, cache, 12), [*PROMPT, 12])
    cache.truncate(5)
    engine.step([item(cache, [60, 61, 62], wanted=[])])
    keep(cache, 0, 1, 2)
    require_like(reference, after(engine, cache, 63, CHAIN), [*PROMPT[:5], 60, 61, 62, 63], CHAIN)


def test_it_catches_up_with_steps_without_drafts(
    engine: LoadedEngine, reference: Eagle3Reference
) -> None:
    cache = started(engine, PROMPT[:3])
    after(engine, cache, PROMPT[3])
    engine.step([item(cache, PROMPT[3:-1])])
    keep(cache, *range(len(PROMPT) - 4))
    require_like(reference, after(engine, cache, PROMPT[-1]), PROMPT)


def test_a_known_prefix_is_read_from_either_cache(
    engine: LoadedEngine, reference: Eagle3Reference
) -> None:
    """The second text shares a block of rows with the first, but not the token after it."""
    first, second = [*range(64), 3, 4], [*range(64), 9, 2]
    cache = started(engine, first[:-1])
    after(engine, cache, first[-1])
    again = engine.open(second)
    assert len(again.tokens) == 64
    engine.step([item(again, second[64:-1], wanted=[])])
    keep(again, 0)
    for each, text in ((again, second), (cache, first)):
        require_like(reference, after(engine, each, text[-1], CHAIN), text, CHAIN)
        each.release()
    late = engine.open(second)
    engine.step([item(late, second[len(late.tokens) : -1], wanted=[])])
    keep(late, *range(len(second) - 1 - len(late.tokens)))
    require_like(reference, after(engine, late, second[-1]), second)


def test_a_long_prompt_is_read_in_parts(
    engine: LoadedEngine, reference: Eagle3Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_drafter, "CHUNK", 20)
    text = [n * 7 % 300 for n in range(90)]
    require_like(reference, after(engine, started(engine, text[:-1]), text[-1]), text)


def test_its_rows_are_given_back_with_those_of_the_target(
    tiny: Path, drafter: Path, make_engine
) -> None:
    engine = make_engine(tiny, eagle3=drafter)
    cache = started(engine, PROMPT[:-1])
    after(engine, cache, PROMPT[-1], CHAIN)
    assert engine.layer.pool.used == 1
    cache.release()
    assert engine.layer.pool.used == engine.pool.used == 0


def test_a_rounded_drafter_is_close(tiny: Path, drafter: Path, make_engine, reference) -> None:
    engine = make_engine(tiny, dtype="bfloat16", eagle3=drafter)
    found = after(engine, started(engine, PROMPT[:-1]), PROMPT[-1])
    expected = reference.probabilities(PROMPT).numpy()
    np.testing.assert_allclose(found[0].probs, expected[found[0].tokens], atol=0.1)


def test_an_engine_without_one_names_what_is_missing(tiny_engine: LoadedEngine) -> None:
    with pytest.raises(Unsupported, match="this engine has no EAGLE-3 drafter"):
        after(tiny_engine, started(tiny_engine, [1]), 2)
