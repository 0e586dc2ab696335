"""The logits after every token of a prompt, in blocks; nothing is decoded."""

from collections.abc import Iterator, Sequence

import numpy as np

from specpipe.contracts import Logits, Runner, Verdict, chain

BLOCK = 64  # tokens per call


def read_context(runner: Runner, prompt: Sequence[int]) -> Iterator[Logits]:
    """Yield the logits [n, V] after the tokens of `prompt`, in order and `BLOCK` tokens at a time.

    The runner must allow steps of `BLOCK` rows. The arrays are copies. The caller may use other
    runners of the engine between two blocks.
    """
    runner.start(prompt[:1])
    for begin in range(0, len(prompt), BLOCK):
        end = begin + BLOCK
        draft = chain(prompt[begin + 1 : end])
        rows = np.array(runner.score(draft).logits, np.float32)
        if end < len(prompt):
            runner.commit(draft, Verdict(tuple(range(len(draft))), prompt[end]))
        yield rows
