"""How well an engine knows the reference's language: both read the same texts, token by token.

Speculation has no part in it. Answers that part at one close decision say little about a quantised
engine; the likelihood of every token says more.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from specpipe.contracts import Logits, Runner, chain
from specpipe.validate.reference import Reference
from specpipe.validate.trials import Arm, Reading

BLOCK = 64  # tokens that the engine reads in one step
Text = tuple[Sequence[int], Sequence[int]]  # prompt and answer


def read_by_reference(reference: Reference, texts: Mapping[int, Text]) -> list[Reading]:
    """Return how transformers reads every text, by number of its prompt."""
    return _read(texts, "reference", reference.logits)


def read_by_engine(runner: Runner, texts: Mapping[int, Text]) -> list[Reading]:
    """Return how an engine reads every text; `runner` must allow steps of `BLOCK` rows."""

    def logits(tokens: Sequence[int]) -> Logits:
        blocks = []
        for begin in range(0, len(tokens), BLOCK):
            runner.follow(tokens[: begin + 1])
            scores = runner.score(chain(tokens[begin + 1 : begin + BLOCK]))
            blocks.append(scores.logits.copy())  # the next step may write over them
        return np.concatenate(blocks)

    return _read(texts, "plain", logits)


def _read(
    texts: Mapping[int, Text], arm: Arm, logits: Callable[[Sequence[int]], Logits]
) -> list[Reading]:
    readings = []
    for number, (prompt, answer) in texts.items():
        tokens = [*prompt, *answer]
        rows = logits(tokens[:-1]).astype(np.float64)  # [n - 1, V]
        following = np.array(tokens[1:])
        top = rows.max(axis=1)
        total = np.log(np.exp(rows - top[:, None]).sum(axis=1)) + top
        likelihoods = rows[np.arange(len(rows)), following] - total
        chosen = (rows.argmax(axis=1) == following)[len(prompt) - 1 :]
        readings.append(Reading(number, arm, tuple(likelihoods.tolist()), tuple(chosen.tolist())))
    return readings
