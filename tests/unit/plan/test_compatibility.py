"""Vocabularies of target and draft: what differs, what it rules out, and where."""

import pytest

from specpipe.plan.compatibility import TokenTable, differences, notes, refusals

TOKENS = {"a": 0, "b": 1, "c": 2}


def vocabulary(
    rows: int = 4, tokens: dict[str, int] | None = None, **special: tuple[int, ...]
) -> TokenTable:
    return TokenTable(rows, TOKENS if tokens is None else tokens, special)


def told(target: TokenTable, draft: TokenTable, *, own_loop: bool) -> tuple[str, str]:
    """Return the refusals and the notes as text."""
    found = differences(target, draft)
    refused = refusals(found, own_loop=own_loop)
    return " | ".join(map(str, refused)), " | ".join(notes(found, own_loop=own_loop))


@pytest.mark.parametrize("own_loop", [True, False])
def test_equal_vocabularies_are_not_worth_a_word(own_loop: bool) -> None:
    assert told(vocabulary(end=(2,)), vocabulary(end=(2,)), own_loop=own_loop) == ("", "")


@pytest.mark.parametrize("own_loop", [True, False])
@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (
            {"a": 1, "b": 0, "c": 2},
            "differ in 2 of the target's 3 tokens ('a': 0 and 1, 'b': 1 and 0)",
        ),
        ({"a": 0, "b": 1, "x": 2}, "differ in 1 of the target's 3 tokens ('c': 2 and None)"),
        ({"a": 0, "b": 1, "c": 3}, "differ in 1 of the target's 3 tokens ('c': 2 and 3)"),
    ],
    ids=["swapped", "another token at an id", "a token at another id"],
)
def test_ids_that_mean_something_else_are_refused_everywhere(
    theirs: dict[str, int], words: str, own_loop: bool
) -> None:
    refused, _ = told(vocabulary(), vocabulary(tokens=theirs), own_loop=own_loop)
    assert words in refused and "use a draft with the target's tokenizer" in refused


def test_a_smaller_table_that_is_padding_alone_rules_out_draft_logits_on_gpus_only() -> None:
    target, draft = vocabulary(rows=9), vocabulary(rows=4)
    refused, noted = told(target, draft, own_loop=False)
    assert refused == ""
    assert "the draft's table has 4 rows, the target's 9; the difference is only padding" in noted
    assert "must not set use_draft_logits" in noted
    assert told(target, draft, own_loop=True) == ("", "")


def test_a_larger_table_is_refused_where_nothing_keeps_the_draft_from_using_it() -> None:
    target, draft = vocabulary(rows=4), vocabulary(rows=9)
    refused, _ = told(target, draft, own_loop=False)
    assert "could propose the ids 4-8, which the target lacks" in refused
    assert told(target, draft, own_loop=True) == ("", "")


def test_tokens_of_the_target_beyond_the_drafts_table_are_refused_on_gpus() -> None:
    more = {**TOKENS, "<x>": 4, "<y>": 5}
    target, draft = vocabulary(rows=6, tokens=more), vocabulary(rows=4)
    refused, _ = told(target, draft, own_loop=False)
    assert "table of 4 rows lacks the target's 2 tokens with ids 4-5 ('<x>', '<y>')" in refused
    assert told(target, draft, own_loop=True)[0] == ""


def test_tokens_that_one_side_has_in_the_padding_of_the_other_are_noted() -> None:
    target = vocabulary(tokens={**TOKENS, "<x>": 3})
    for own_loop in (True, False):
        refused, noted = told(target, vocabulary(), own_loop=own_loop)
        assert (
            refused == ""
            and "draft's vocabulary lacks the target's 1 token with id 3 ('<x>')" in noted
        )
        refused, noted = told(vocabulary(), target, own_loop=own_loop)
        assert (
            refused == ""
            and "target's vocabulary lacks the draft's 1 token with id 3 ('<x>')" in noted
        )


def test_special_ids_that_differ_are_noted_by_name() -> None:
    _, noted = told(vocabulary(end=(2,)), vocabulary(end=(1, 2)), own_loop=True)
    assert (
        "the end token is 2 in the target and 1-2 in the draft; requests use the target's" in noted
    )


def test_unequal_tables_without_tokenizers_are_refused_for_they_cannot_be_compared() -> None:
    refused, _ = told(TokenTable(9), TokenTable(4), own_loop=False)
    assert "a vocabulary of 4 tokens, the target of 9; without both tokenizers" in refused
    assert told(TokenTable(9), TokenTable(9), own_loop=False) == ("", "")


def test_many_ids_are_told_as_runs() -> None:
    more = {**TOKENS, **{f"<{i}>": i for i in (4, 5, 6, 8, 10, 12, 14, 16)}}
    refused, _ = told(vocabulary(rows=20, tokens=more), vocabulary(rows=4), own_loop=False)
    assert "8 tokens with ids 4-6, 8, 10, 12, ... ('<4>', '<5>', '<6>', ...)" in refused
