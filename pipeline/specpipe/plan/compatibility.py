"""Does a draft mean the target's tokens? Compared token by token, and what a difference rules out.

Sizes of the models' tables differ more often than tokenizers do: rows beyond the tokenizer's last
id are padding, and mean nothing. Our own loop lets a draft speak only of the target's rows
(`speculate/vocabulary.py`); an engine that verifies by itself has no such guard.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from specpipe.building import Rejection

RulesOut = Literal["nothing", "draft logits", "engines", "everything"]
_CONSEQUENCE: dict[RulesOut, str] = {
    "nothing": "answers stay the same; such a token is never guessed right",
    "draft logits": "only tokens can be compared, no probabilities: a request to a GPU engine must "
    "not set use_draft_logits",
    "engines": "an engine that verifies drafts by itself has no guard against such ids",
    "everything": "a draft must mean the same ids",
}


@dataclass(frozen=True)
class Vocabulary:
    """What one model calls its ids."""

    rows: int  # of the model's table and of its logits: vocab_size of config.json
    tokens: Mapping[str, int] | None = None  # of the tokenizer; None: it is not here
    special: Mapping[str, tuple[int, ...]] | None = None  # "end" -> its ids; None: not known


@dataclass(frozen=True)
class Difference:
    """One way in which a draft's vocabulary is not the target's."""

    sentence: str
    rules_out: RulesOut

    def __str__(self) -> str:
        return f"{self.sentence}: {_CONSEQUENCE[self.rules_out]}"


def differences(target: Vocabulary, draft: Vocabulary) -> list[Difference]:
    """Return every difference, what rules out most first; empty if the two are the same."""
    found = [*_tokens(target, draft), *_rows(target, draft), *_special(target, draft)]
    order = list(_CONSEQUENCE)
    return sorted(found, key=lambda difference: -order.index(difference.rules_out))


def refusals(found: Iterable[Difference], *, own_loop: bool) -> list[Rejection]:
    """Return the differences that cannot be served; `own_loop`: drafts are verified by ours."""
    hints: dict[RulesOut, str] = {
        "everything": "use a draft with the target's tokenizer",
        "engines": "use a draft whose table is no larger than the target's, or backend: openvino",
    }
    fatal = ("everything",) if own_loop else ("everything", "engines")
    return [Rejection(d.sentence, hints[d.rules_out]) for d in found if d.rules_out in fatal]


def notes(found: Iterable[Difference], *, own_loop: bool) -> list[str]:
    """Return the differences that can be lived with, each with what it means."""
    harmless = ("nothing", "draft logits") if not own_loop else ("nothing",)
    return [str(difference) for difference in found if difference.rules_out in harmless]


def _tokens(target: Vocabulary, draft: Vocabulary) -> Iterator[Difference]:
    if target.tokens is None or draft.tokens is None:
        if target.rows != draft.rows:
            yield Difference(
                f"the draft has a vocabulary of {draft.rows} tokens, the target of {target.rows}, "
                "and their tokenizers are not here to tell whether that is padding alone",
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
    """List our tokens that they have at another id, or at whose id they have another token."""
    at = {number: token for token, number in theirs.items()}
    return [t for t, i in ours.items() if theirs.get(t, i) != i or at.get(i, t) != t]


def _clash(ours: Mapping[str, int], theirs: Mapping[str, int], tokens: list[str]) -> Difference:
    of_target = [t for t in tokens if t in ours]  # never empty: a clash has two sides
    some = ", ".join(f"{t!r}: {ours[t]} and {theirs.get(t)}" for t in of_target[:3])
    return Difference(
        f"target and draft differ in {len(of_target)} of the target's {len(ours)} tokens ({some})",
        "everything",
    )


def _only_target(tokens: Mapping[str, int], draft: Vocabulary) -> Iterator[Difference]:
    beyond = {t: i for t, i in tokens.items() if i >= draft.rows}
    if beyond:
        yield Difference(
            f"the target's {_named(beyond)} lie beyond the {draft.rows} rows of the draft's table",
            "engines",
        )
    if len(tokens) > len(beyond):
        rest = {t: i for t, i in tokens.items() if i < draft.rows}
        yield Difference(f"the target's {_named(rest)} mean nothing to the draft", "nothing")


def _only_draft(tokens: Mapping[str, int], target: Vocabulary) -> Iterator[Difference]:
    inside = {t: i for t, i in tokens.items() if i < target.rows}
    if inside:
        yield Difference(f"the draft's {_named(inside)} mean nothing to the target", "nothing")


def _rows(target: Vocabulary, draft: Vocabulary) -> Iterator[Difference]:
    if target.rows == draft.rows or target.tokens is None or draft.tokens is None:
        return
    sizes = f"the draft's table has {draft.rows} rows, the target's {target.rows}"
    alone = f"; that is padding alone, all {len(target.tokens)} tokens agree"
    sizes += alone if target.tokens == draft.tokens else ""
    if draft.rows < target.rows:
        yield Difference(sizes, "draft logits")
    else:
        last = f"it could propose the ids {target.rows}-{draft.rows - 1}, which the target lacks"
        yield Difference(f"{sizes}, but {last}", "engines")


def _special(target: Vocabulary, draft: Vocabulary) -> Iterator[Difference]:
    ours, theirs = target.special or {}, draft.special or {}
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name] != theirs[name]:
            yield Difference(
                f"the {name} token is {_ids(ours[name])} to the target and {_ids(theirs[name])} to "
                "the draft; requests follow the target",
                "nothing",
            )


def _named(tokens: Mapping[str, int]) -> str:
    """Return `2 tokens 7-8 ('<a>', '<b>')`."""
    names = ", ".join(repr(t) for t in sorted(tokens, key=lambda t: tokens[t])[:3])
    more = ", ..." if len(tokens) > 3 else ""
    return f"{len(tokens)} tokens with ids {_ids(tokens.values())} ({names}{more})"


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
