"""Compare the vocabularies of draft and target token by token, and decide what can be served.

The sizes of the embedding tables differ more often than the tokenizers. Rows after the last id of
the tokenizer are padding and stand for no token. specpipe's loop restricts a draft to the target's
rows (`speculate/vocabulary.py`). An engine that verifies draft tokens itself has no such guard.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from specpipe.core.errors import Rejection

RulesOut = Literal["nothing", "draft logits", "engines", "everything"]
_CONSEQUENCE: dict[RulesOut, str] = {
    "nothing": "answers stay the same; such a draft token is never accepted",
    "draft logits": "tokens can be compared, but not probabilities; a request to a GPU engine must "
    "not set use_draft_logits",
    "engines": "an engine that verifies draft tokens itself has no guard against such ids",
    "everything": "a draft must mean the same ids",
}


@dataclass(frozen=True)
class TokenTable:
    """The ids of one model and their tokens."""

    rows: int  # of the model's table and of its logits: vocab_size of config.json
    tokens: Mapping[str, int] | None = None  # of the tokenizer; None: there is no tokenizer
    special: Mapping[str, tuple[int, ...]] | None = None  # "end" -> its ids; None: not known


@dataclass(frozen=True)
class VocabularyDifference:
    """One difference between the vocabularies of draft and target."""

    sentence: str
    rules_out: RulesOut

    def __str__(self) -> str:
        return f"{self.sentence}: {_CONSEQUENCE[self.rules_out]}"


def differences(target: TokenTable, draft: TokenTable) -> list[VocabularyDifference]:
    """Return every difference, the most severe first; empty if there is none."""
    found = [*_tokens(target, draft), *_rows(target, draft), *_special(target, draft)]
    order = list(_CONSEQUENCE)
    return sorted(found, key=lambda difference: -order.index(difference.rules_out))


def refusals(found: Iterable[VocabularyDifference], *, own_loop: bool) -> list[Rejection]:
    """Refuse the differences that cannot be served.

    `own_loop`: specpipe's loop verifies the draft tokens.
    """
    hints: dict[RulesOut, str] = {
        "everything": "use a draft with the target's tokenizer",
        "engines": "use a draft whose table is no larger than the target's, or backend: openvino",
    }
    fatal = ("everything",) if own_loop else ("everything", "engines")
    return [Rejection(d.sentence, hints[d.rules_out]) for d in found if d.rules_out in fatal]


def notes(found: Iterable[VocabularyDifference], *, own_loop: bool) -> list[str]:
    """Return the differences that can be served, each with its consequence."""
    harmless = ("nothing", "draft logits") if not own_loop else ("nothing",)
    return [str(difference) for difference in found if difference.rules_out in harmless]


def _tokens(target: TokenTable, draft: TokenTable) -> Iterator[VocabularyDifference]:
    if target.tokens is None or draft.tokens is None:
        if target.rows != draft.rows:
            yield VocabularyDifference(
                f"the draft has a vocabulary of {draft.rows} tokens, the target of {target.rows}; "
                "without both tokenizers specpipe cannot tell whether the difference is only "
                "padding",
                "everything",
            )
        return
    ours, theirs = target.tokens, draft.tokens
    clash = [*_clashes(ours, theirs), *(t for t in _clashes(theirs, ours) if t not in ours)]
    if clash:
        yield _clash(ours, theirs, sorted(clash))
    known = set(clash)
    yield from _only_target({t: ours[t] for t in ours.keys() - theirs.keys() - known}, draft)
    yield from _only_draft({t: theirs[t] for t in theirs.keys() - ours.keys() - known}, target)


def _clashes(ours: Mapping[str, int], theirs: Mapping[str, int]) -> list[str]:
    """List tokens of `ours` with another id in `theirs`, or whose id has another token there."""
    at = {number: token for token, number in theirs.items()}
    return [t for t, i in ours.items() if theirs.get(t, i) != i or at.get(i, t) != t]


def _clash(
    ours: Mapping[str, int], theirs: Mapping[str, int], tokens: list[str]
) -> VocabularyDifference:
    of_target = [t for t in tokens if t in ours]  # never empty: a clash has two sides
    some = ", ".join(f"{t!r}: {ours[t]} and {theirs.get(t)}" for t in of_target[:3])
    return VocabularyDifference(
        f"target and draft differ in {len(of_target)} of the target's {len(ours)} tokens ({some})",
        "everything",
    )


def _only_target(tokens: Mapping[str, int], draft: TokenTable) -> Iterator[VocabularyDifference]:
    beyond = {t: i for t, i in tokens.items() if i >= draft.rows}
    if beyond:
        yield VocabularyDifference(
            f"the draft's table of {draft.rows} rows lacks the target's {_named(beyond)}",
            "engines",
        )
    if len(tokens) > len(beyond):
        rest = {t: i for t, i in tokens.items() if i < draft.rows}
        yield VocabularyDifference(
            f"the draft's vocabulary lacks the target's {_named(rest)}", "nothing"
        )


def _only_draft(tokens: Mapping[str, int], target: TokenTable) -> Iterator[VocabularyDifference]:
    inside = {t: i for t, i in tokens.items() if i < target.rows}
    if inside:
        yield VocabularyDifference(
            f"the target's vocabulary lacks the draft's {_named(inside)}", "nothing"
        )


def _rows(target: TokenTable, draft: TokenTable) -> Iterator[VocabularyDifference]:
    if target.rows == draft.rows or target.tokens is None or draft.tokens is None:
        return
    sizes = f"the draft's table has {draft.rows} rows, the target's {target.rows}"
    padding = f"; the difference is only padding, all {len(target.tokens)} tokens agree"
    sizes += padding if target.tokens == draft.tokens else ""
    if draft.rows < target.rows:
        yield VocabularyDifference(sizes, "draft logits")
    else:
        last = f"it could propose the ids {target.rows}-{draft.rows - 1}, which the target lacks"
        yield VocabularyDifference(f"{sizes}, but {last}", "engines")


def _special(target: TokenTable, draft: TokenTable) -> Iterator[VocabularyDifference]:
    ours, theirs = target.special or {}, draft.special or {}
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name] != theirs[name]:
            yield VocabularyDifference(
                f"the {name} token is {_ids(ours[name])} in the target and {_ids(theirs[name])} in "
                "the draft; requests use the target's",
                "nothing",
            )


def _named(tokens: Mapping[str, int]) -> str:
    """Return `2 tokens 7-8 ('<a>', '<b>')`."""
    names = ", ".join(repr(t) for t in sorted(tokens, key=lambda t: tokens[t])[:3])
    more = ", ..." if len(tokens) > 3 else ""
    s = "s" * (len(tokens) != 1)
    return f"{len(tokens)} token{s} with id{s} {_ids(tokens.values())} ({names}{more})"


def _ids(numbers: Iterable[int]) -> str:
    """Return `3, 7-9`; at most four runs."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs[:4])
    return (text or "none") + (", ..." if len(runs) > 4 else "")
