from dataclasses import dataclass, field

import numpy as np
import pytest

from specpipe.core.contracts import Draft, Mask, chain
from specpipe.core.errors import ConfigError
from specpipe.speculate.constrained import Constraint, permitted, permitted_part

WORDS = ((0, 1), (0, 2, 1), (2,))  # the answers, in tokens; 3 ends one
END = 3


@dataclass
class WordMatcher:
    """Permits the words above; a log of what was fed is shared by all copies."""

    fed: tuple[int, ...] = ()
    log: list[int] = field(default_factory=list)

    def copy(self) -> "WordMatcher":
        return WordMatcher(self.fed, self.log)

    def feed(self, token: int) -> bool:
        self.log.append(token)
        self.fed += (token,)
        return any(word[: len(self.fed)] == self.fed for word in WORDS)

    def mask(self) -> Mask:
        mask = np.zeros(4, np.bool_)
        for word in WORDS:
            if word[: len(self.fed)] == self.fed and len(word) > len(self.fed):
                mask[word[len(self.fed)]] = True
        return mask

    def accepts(self) -> bool:
        return self.fed in WORDS


def permitted_after(constraint: Constraint, *path: int) -> list[int] | None:
    mask = constraint.mask(path)
    return None if mask is None else np.flatnonzero(mask).tolist()


def test_every_position_has_the_mask_of_its_own_history() -> None:
    constraint = Constraint(WordMatcher(), (END,))
    assert permitted_after(constraint) == [0, 2]
    assert permitted_after(constraint, 0) == [1, 2]
    assert permitted_after(constraint, 0, 2) == [1]
    assert permitted_after(constraint, 1) is None  # not permitted
    assert permitted_after(constraint, 2) is None  # the answer ends here
    constraint.commit([0])
    assert permitted_after(constraint) == [1, 2] and permitted_after(constraint, 2) == [1]


def test_an_answer_is_complete_where_it_can_only_end() -> None:
    constraint = Constraint(WordMatcher(), (END,))
    assert [constraint.is_complete(p) for p in ((), (0,), (0, 1), (2,), (1,))] == [
        False, False, True, True, False,
    ]  # fmt: skip


def test_an_end_token_is_never_fed() -> None:
    matcher = WordMatcher()
    constraint = Constraint(matcher, (END,))
    for path in ((END,), (0, END), (0, 1, END), (0, 1, END, 0)):
        constraint.mask(path)
        constraint.permits(path[:-1], path[-1])
    assert set(matcher.log) == {0, 1}


def test_an_end_token_may_follow_where_the_answer_may_end() -> None:
    constraint = Constraint(WordMatcher(), (END,))
    assert constraint.permits((0, 1), END) and not constraint.permits((0,), END)


def test_a_token_of_the_text_that_ends_this_answer_is_no_text() -> None:
    constraint = Constraint(WordMatcher(), (END, 2))
    assert permitted_after(constraint) == [0]
    assert not constraint.permits((), 2)


def test_the_walk_leaves_the_committed_state_alone() -> None:
    constraint = Constraint(WordMatcher(), (END,))
    for path in ((0, 2), (2,), (0, 1)):
        constraint.mask(path)
    assert permitted_after(constraint) == [0, 2]


def test_a_token_outside_the_grammar_cannot_be_committed() -> None:
    with pytest.raises(ConfigError, match=r"does not permit the tokens \[0, 0\]"):
        Constraint(WordMatcher(), (END,)).commit([0, 0])


def test_a_chosen_draft_is_cut_to_what_is_permitted() -> None:
    constraint = Constraint(WordMatcher(), (END,))
    draft = Draft(np.array([0, 1, 2, 3, 1, 1]), np.array([-1, -1, 0, 0, 2, 1]))
    kept = permitted_part(draft, constraint)
    assert kept.tokens.tolist() == [0, 2, 1] and kept.parents.tolist() == [-1, 0, 1]
    assert permitted_part(kept, constraint) is kept


def test_drawn_drafts_and_scratch_nodes_stay() -> None:
    constraint = Constraint(WordMatcher(), (END,))
    for draft in (
        chain([1, 1], np.full((2, 4), 0.25)),
        Draft(np.array([1]), np.array([-1]), None, 1),
    ):
        assert permitted_part(draft, constraint) is draft


def test_masked_logits_are_minus_infinity_and_some_must_be_left() -> None:
    logits, mask = np.zeros(3, np.float32), np.array([True, False, True])
    assert permitted(logits, mask).tolist() == [0, -np.inf, 0]
    assert permitted(logits, None) is logits
    with pytest.raises(ConfigError, match="the grammar permits no token here"):
        permitted(np.array([-np.inf, 1, -np.inf], np.float32), mask)
