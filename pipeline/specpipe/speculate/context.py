"""What a model expects after every token of a prompt, in blocks; nothing is decoded."""

from collections.abc import Iterator, Sequence

import numpy as np

from specpipe.contracts import Logits, Runner, Verdict, chain

BLOCK = 64  # tokens of one call


def read_context(runner: Runner, prompt: Sequence[int]) -> Iterator[Logits]:
    """Yield the logits [n, V] after the tokens of `prompt`, `BLOCK` of them at a time, in order.

    The runner must allow steps of `BLOCK` rows. The arrays are copies. Between two blocks the
    caller may use other runners of the engine.
    """
    runner.start(prompt[:1])
    for begin in range(0, len(prompt), BLOCK):
        end = begin + BLOCK
        draft = chain(prompt[begin + 1 : end])
        rows = np.array(runner.score(draft).logits, np.float32)
        if end < len(prompt):
            runner.commit(draft, Verdict(tuple(range(len(draft))), prompt[end]))
        yield rows
