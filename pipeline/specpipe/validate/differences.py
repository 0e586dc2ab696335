"""Differences between two answers to one prompt: near-ties and defects.

Two tokens that are almost equally likely may change places with the order of additions, which
depends on the shape of a batch. Such a near-tie is no fault of serving. The reference decides: its
margin at the first difference is the log probability of its likeliest token minus that of the
token in the answer. A margin above the noise of the run is a defect.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from specpipe.core.contracts import Floats
from specpipe.runtime.tokens import TextTokenizer
from specpipe.validate.judge import Judge
from specpipe.validate.trials import EXCERPT, Arm, first_difference

Kind = Literal["near-tie", "defect", "not judged"]
LEAST = 1e-3  # nats: a smaller margin is a near-tie on every engine
MOST_PRECISION = 2.0  # nats: a coarser engine is not excused further
CANDIDATES = 64  # tokens that are compared with a text


@dataclass(frozen=True)
class Noise:
    """How far the log probability of a token moves without a fault, in nats; None: not known."""

    batch: float | None = None  # twice the change in another batch shape, of plain decoding
    precision: float | None = None  # twice the distance between the engine and the reference
    tokens: int = 0  # that were compared in two batch shapes

    @property
    def limit(self) -> float | None:
        """The largest margin of a near-tie; None if it was not calibrated."""
        if self.batch is None or self.precision is None:
            return None
        return max(LEAST, self.batch + min(self.precision, MOST_PRECISION))


@dataclass(frozen=True)
class Contrast:
    """Two answers to one prompt that should be equal."""

    scenario: str
    prompt: int
    arm: Arm
    against: Arm
    asked: tuple[int, ...]
    expected_text: str
    got_text: str
    expected: tuple[int, ...] = ()  # empty: only the text is known
    got: tuple[int, ...] = ()  # likewise
    load: str = ""


@dataclass(frozen=True)
class Difference:
    """The first place where two answers differ, and its class."""

    scenario: str
    prompt: int
    arm: Arm
    against: Arm
    kind: Kind
    position: int  # in the tokens of the answer, from 0
    margin: float  # nats: of the reference, its likeliest token over the one in the answer
    token: int | None  # in the answer; None: it ended here
    expected_text: str
    got_text: str
    load: str = ""

    def __str__(self) -> str:
        place = f"{self.scenario}, prompt {self.prompt}"
        place += f", {self.load}" if self.load else ""
        return (
            f"{self.kind}: {place}: {self.arm} against {self.against} at token {self.position}, "
            f"margin {self.margin:.3g} nats: {self.got_text!r} instead of {self.expected_text!r}"
        )


@dataclass(frozen=True)
class Equality:
    """All comparisons of a scenario: their number by arm and partner, and the differences."""

    compared: Mapping[tuple[Arm, Arm], int]
    differences: tuple[Difference, ...] = ()

    def rows(self) -> list[list[str]]:
        """Return a line for each pair: compared, equal, near-ties, defects, not judged."""
        found = []
        for (arm, against), total in self.compared.items():
            kinds = Counter(d.kind for d in self.of(arm, against))
            counts = [total, total - kinds.total(), *(kinds[k] for k in KINDS)]
            found.append([f"{arm} against {against}", *map(str, counts)])
        return found

    def of(self, arm: Arm, against: Arm) -> list[Difference]:
        """Return the differences of a pair."""
        return [d for d in self.differences if (d.arm, d.against) == (arm, against)]


NO_NOISE = Noise()
NO_PAIRS = Equality({})
KINDS: tuple[Kind, ...] = ("near-tie", "defect", "not judged")
HEAD = ("", "compared", "equal", "near-ties", "defects", "not judged")


def count_pairs(contrasts: Iterable[Contrast]) -> dict[tuple[Arm, Arm], int]:
    """Return the number of comparisons by arm and partner."""
    return dict(Counter((c.arm, c.against) for c in contrasts))


def compare(
    contrasts: Sequence[Contrast], judge: Judge, tokenizer: TextTokenizer, noise: Noise
) -> Equality:
    """Classify every pair of answers; the reference is loaded only if there is a difference."""
    found = [classify(c, judge, tokenizer, noise) for c in contrasts if differs(c, tokenizer)]
    return Equality(count_pairs(contrasts), tuple(found))


def differs(contrast: Contrast, tokenizer: TextTokenizer) -> bool:
    """Tell whether texts differ, or tokens where both are known; end tokens do not count."""
    if contrast.expected_text != contrast.got_text:
        return True
    known = bool(contrast.expected and contrast.got)
    return known and _bare(contrast.expected, tokenizer) != _bare(contrast.got, tokenizer)


def classify(
    contrast: Contrast, judge: Judge, tokenizer: TextTokenizer, noise: Noise
) -> Difference:
    """Find the first difference, and let the reference judge it."""
    expected = _bare(contrast.expected, tokenizer) or tuple(
        tokenizer.tokenizer.encode(contrast.expected_text, add_special_tokens=False).ids
    )
    got = _bare(contrast.got, tokenizer)
    place = first_difference(expected, got) if got or not contrast.got_text else None
    if place is None:
        place = _place_in_text(expected, contrast.got_text, tokenizer)
        row = judge.row((*contrast.asked, *expected[:place]))
        token = _token_in_text(row, expected[:place], contrast.got_text, tokenizer)
    else:
        row = judge.row((*contrast.asked, *expected[:place]))
        shown = [t for t in got[place:] if t not in tokenizer.end_ids]  # an end token must end it
        token = shown[0] if shown else None
    chosen = max(row[i] for i in tokenizer.end_ids) if token is None else row[token]
    margin = float(row.max() - chosen)
    return _difference(contrast, place, token, margin, noise)


def _difference(
    contrast: Contrast, place: int, token: int | None, margin: float, noise: Noise
) -> Difference:
    limit = noise.limit
    kind: Kind = "not judged" if limit is None else "near-tie" if margin <= limit else "defect"
    theirs, ours = contrast.expected_text, contrast.got_text
    at = first_difference(theirs, ours)
    at = min(len(theirs), len(ours)) if at is None else at
    texts = (theirs[at : at + EXCERPT], ours[at : at + EXCERPT])
    return Difference(
        contrast.scenario, contrast.prompt, contrast.arm, contrast.against, kind, place, margin,
        token, *texts, contrast.load,
    )  # fmt: skip


def _bare(tokens: Sequence[int], tokenizer: TextTokenizer) -> tuple[int, ...]:
    """Return an answer's tokens without the end token, which some servers send."""
    ended = bool(tokens) and tokens[-1] in tokenizer.end_ids
    return tuple(tokens[:-1] if ended else tokens)


def _place_in_text(expected: Sequence[int], got: str, tokenizer: TextTokenizer) -> int:
    """Return how many expected tokens a text begins with."""
    for place in range(len(expected), 0, -1):
        if got.startswith(tokenizer.decode(expected[:place]).rstrip("\ufffd")):
            return place
    return 0


def _token_in_text(
    row: Floats, before: Sequence[int], got: str, tokenizer: TextTokenizer
) -> int | None:
    """Return the likeliest token that a text may continue with; None if the text ends.

    If none of the likeliest tokens fits, the last of them stands for the others: the margin is
    then a lower bound.
    """
    known = tokenizer.decode(before).rstrip("\ufffd")
    if len(got) <= len(known):
        return None
    best = np.argsort(-row)[:CANDIDATES]
    for token in best:
        text = tokenizer.decode([*before, int(token)]).rstrip("\ufffd")
        if len(text) > len(known) and got.startswith(text):
            return int(token)
    return int(best[-1])


def lines(found: Iterable[Difference]) -> Iterator[str]:
    """Yield a sentence for each difference, defects first."""
    order = {"defect": 0, "not judged": 1, "near-tie": 2}
    return (str(d) for d in sorted(found, key=lambda d: (order[d.kind], -d.margin)))
