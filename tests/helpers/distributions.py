"""The distribution of an output: expected, computed by enumeration, and estimated from draws.

`enumerate_distribution` runs the real proposer, loop and verifier once for every outcome of their
random decisions and adds up the probabilities. There is no sampling error that could hide a bias.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import pytest

from specpipe.core.contracts import Draft, Floats, Sampling, Verdict, length_to_end
from specpipe.speculate import accept
from specpipe.speculate.decode import Limits
from specpipe.speculate.sampling import adjust, distribution
from tests.helpers.scripted_model import Allow, Cut, no_cut, whole_limit
from tests.helpers.worlds import PROMPT, Case, World

LENGTH = 3  # tokens of the joint distribution
T = TypeVar("T")


@dataclass
class Dice:
    """Replays decisions, then takes the first outcome of each new one and notes the others."""

    script: tuple[int, ...] = ()
    odds: float = 1.0
    made: list[int] = field(default_factory=list)
    untried: list[tuple[int, ...]] = field(default_factory=list)

    def choose(self, weights: Floats) -> int:
        """Choose an index, with a probability proportional to its weight.

        If all weights are 0, the probability is lost, which shows in the distribution.
        """
        possible = np.flatnonzero(weights > 0)
        if not len(possible):
            self.odds = 0.0
            return 0
        if len(self.made) < len(self.script):
            outcome = self.script[len(self.made)]
        else:
            outcome = int(possible[0])
            self.untried += [(*self.made, int(other)) for other in possible[1:]]
        self.made.append(outcome)
        self.odds *= weights[outcome] / weights.sum()
        return outcome

    def random(self) -> "Throw":
        """Return a number from [0, 1) that is chosen when it is compared."""
        return Throw(self)


@dataclass(frozen=True)
class Throw:
    """A uniform number times `scale`, which is compared only once."""

    dice: Dice
    scale: float = 1.0

    def __mul__(self, scale: float) -> "Throw":
        return Throw(self.dice, self.scale * scale)

    def __lt__(self, bound: float) -> bool:
        below = min(1.0, max(0.0, bound / self.scale))
        return self.dice.choose(np.array([1 - below, below])) == 1


def outcomes(program: Callable[[Dice], T]) -> Iterator[tuple[T, float]]:
    """Yield every result of a program that decides by dice, with its probability."""
    pending: list[tuple[int, ...]] = [()]
    while pending:
        dice = Dice(pending.pop())
        result = program(dice)
        yield result, dice.odds
        pending += dice.untried


def exact_distribution(world: World, sampling: Sampling) -> Floats:
    """Return the expected distribution [V, V, V] of the first tokens; after an end it is 0."""
    joint = np.zeros((world.vocab_size,) * LENGTH)

    def walk(output: tuple[int, ...], odds: float) -> None:
        language = world.language
        complete = language is not None and output and language.is_complete(output)
        if len(output) == LENGTH or complete or length_to_end(output, sampling.end_ids):
            joint[padded(output)] += odds
            return
        history = PROMPT + list(output)
        logits = np.log(world.target(history)).astype(np.float32)
        logits = adjust(logits, sampling, history, len(output))
        if language is not None:
            logits = np.where(language.permitted(output), logits, np.float32(-np.inf))
        probs = distribution(logits, sampling)
        for token in np.flatnonzero(probs):
            walk((*output, int(token)), odds * probs[token])

    walk((), 1.0)
    return joint


def enumerate_distribution(
    world: World, options: str, sampling: Sampling, draft_name: str = "random", depth: int = 2
) -> Floats:
    """Return the joint distribution of the output with the proposer of `options`."""
    return enumerate_case(world, world.case(options, draft_name, depth), sampling)


def enumerate_case(
    world: World,
    case: Case,
    sampling: Sampling,
    *,
    allow: Allow = whole_limit,
    cut: Cut = no_cut,
) -> Floats:
    """Return the joint distribution of the output with a proposer."""
    joint = np.zeros((world.vocab_size,) * LENGTH)

    def answer(dice: Dice) -> list[int]:
        with pytest.MonkeyPatch.context() as patch:
            decide_by(dice, patch)
            return world.generate(case, sampling, Limits(LENGTH), allow=allow, cut=cut)

    for output, odds in outcomes(answer):
        joint[padded(output)] += odds
    return joint


def verdicts(
    draft: Draft, probs: Callable[[accept.Path], Floats]
) -> Iterator[tuple[Verdict, float]]:
    """Yield the possible verdicts of `accept.sample` on a draft, with their probabilities."""

    def decide(dice: Dice) -> Verdict:
        with pytest.MonkeyPatch.context() as patch:
            decide_by(dice, patch)
            return accept.sample(draft, probs, np.random.default_rng(0))

    return outcomes(decide)


def decide_by(dice: Dice, patch: pytest.MonkeyPatch) -> None:
    """Make the verifier and the draft use `dice` instead of their generators."""
    rule = accept.sample

    def sample(draft: Draft, probs: Callable[[accept.Path], Floats], rng: object) -> Verdict:
        return rule(draft, probs, dice)  # type: ignore[arg-type]

    patch.setattr(accept, "sample", sample)
    patch.setattr(accept, "draw", lambda probs, rng: dice.choose(probs))


def frequencies(
    world: World, options: str, sampling: Sampling, *, draft_name: str = "random", draws: int
) -> Floats:
    """Count the first tokens of `draws` answers with as many seeds."""
    counts = np.zeros((world.vocab_size,) * LENGTH)
    case = world.case(options, draft_name, 2)
    for seed in range(draws):
        output = world.generate(case, replace(sampling, seed=seed), Limits(LENGTH))
        counts[padded(output)] += 1
    return counts


def excess(expected: Floats, counts: Floats) -> float:
    """Return the chi-square statistic in standard deviations above its mean, rare cells pooled."""
    wanted = expected.ravel() * counts.sum()
    often = wanted >= 10
    pairs = [(counts.ravel()[often], wanted[often])]
    if wanted[~often].sum() >= 10:
        pairs.append((counts.ravel()[~often].sum()[None], wanted[~often].sum()[None]))
    seen, mean = (np.concatenate(side) for side in zip(*pairs, strict=True))
    freedom = len(seen) - 1
    return float((((seen - mean) ** 2 / mean).sum() - freedom) / np.sqrt(2 * freedom))


def padded(output: Sequence[int]) -> tuple[int, ...]:
    return (*output, *[0] * (LENGTH - len(output)))
