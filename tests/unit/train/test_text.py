"""Documents: what is learned of a chat, which label belongs to which position, who is held out."""

import numpy as np
import pytest

from specpipe.core.contracts import Ints
from specpipe.core.errors import ConfigError
from specpipe.train.text import (
    Document,
    head_labels,
    next_labels,
    split_documents,
)


def plain(tokens: list[int]) -> Document:
    return Document(np.array(tokens, np.int64), np.ones(len(tokens), bool))


def as_head_k_must_see(labels: Ints, tokens: Ints) -> bool:
    """Return whether the label of head k at t is token t + 2 + k, and -1 past the end."""
    for (t, k), label in np.ndenumerate(labels):
        wanted = tokens[t + 2 + k] if t + 2 + k < len(tokens) else -1
        if label != wanted:
            return False
    return True


def test_head_k_is_taught_the_token_k_plus_2_ahead() -> None:
    document = plain(list(range(100, 120)))
    labels = head_labels(document, 3)
    assert as_head_k_must_see(labels, document.tokens)
    one_too_near, one_too_far = np.roll(labels, 1, axis=0), np.roll(labels, -1, axis=0)
    assert not as_head_k_must_see(one_too_near, document.tokens)
    assert not as_head_k_must_see(one_too_far, document.tokens)
    assert not as_head_k_must_see(labels[:, ::-1], document.tokens)


def test_heads_are_taught_only_after_a_token_that_the_model_chose() -> None:
    learned = np.array([0, 0, 0, 1, 1, 1, 0, 0, 1, 1], bool)
    document = Document(np.arange(10), learned)
    labels = head_labels(document, 2)
    assert labels[:, 0].tolist() == [-1, -1, 4, 5, -1, -1, -1, 9, -1, -1]
    assert labels[:, 1].tolist() == [-1, -1, 5, -1, -1, -1, -1, -1, -1, -1]
    gap = Document(np.arange(6), np.array([1, 1, 0, 1, 1, 1], bool))
    assert head_labels(gap, 2).tolist() == [[-1, -1], [-1, -1], [4, 5], [5, -1], [-1, -1], [-1, -1]]


def test_the_next_token_is_a_label_only_if_it_is_learned() -> None:
    document = Document(np.arange(10, 15), np.array([0, 0, 1, 1, 0], bool))
    assert next_labels(document).tolist() == [-1, 12, 13, -1, -1]


def test_documents_are_held_out_whole_and_the_choice_depends_on_the_seed_alone() -> None:
    documents = [plain([i, i + 1, i + 2]) for i in range(40)]
    split = split_documents(documents, 0.25, seed=3)
    again = split_documents(documents[::-1], 0.25, seed=3)
    held = {d.digest() for d in split.held_out}
    assert len(held) == 10 and not held & {d.digest() for d in split.training}
    assert held == {d.digest() for d in again.held_out}
    assert held != {d.digest() for d in split_documents(documents, 0.25, seed=4).held_out}


def test_copies_of_a_document_are_not_on_both_sides() -> None:
    documents = [plain([i % 4, 9, 9]) for i in range(20)]
    split = split_documents(documents, 0.25, seed=0)
    assert len(split.training) == 15 and len(split.held_out) == 5


def test_one_document_cannot_be_split() -> None:
    with pytest.raises(ConfigError, match="cannot be split"):
        split_documents([plain([1, 2, 3])] * 2, 0.1, seed=0)
