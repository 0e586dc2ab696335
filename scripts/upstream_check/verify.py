"""Verify drafts with TensorRT-LLM's own Python, and compare its verdicts with the CPU engine's.

    python -m upstream_check.verify TREE RELEASE

Every draft has a table of logits, one row for each of its paths, which both sides read. The target
often chooses one of the draft's tokens, so that verdicts of all lengths occur. Prints a line of
JSON for each method: its name, whether all verdicts agree, and words.

- Medusa: the Python runtime arranges the heads' tokens as a tree and finds the best path
  (`runtime/generation.py`, `runtime/medusa_utils.py`).
- ReDrafter: the network merges beams to a tree and verifies it (`models/redrafter/
  redrafter_helper.py`), on the stand-in for TensorRT; greedy.
- EAGLE: the plugin that verifies is C++. TensorRT-LLM's tests of it state verdicts in Python
  (`tests/model/eagle`), which are compared; those that draw tokens are left out.

Not here: lookahead, whose verification is C++ only, and verdicts by random numbers, which differ
by design: they agree in distribution.
"""

import ast
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from specpipe.core.contracts import EMPTY, ROOT, Draft, Guesses, Scores, Verdict
from specpipe.core.trees import TreePath, assumed_accuracy, grow_tree
from specpipe.speculate.accept import greedy
from specpipe.speculate.medusa import MedusaProposer
from upstream_check import plugins, runner
from upstream_check.verdicts import (
    DRAFTS,
    VOCABULARY,
    Tally,
    Target,
    Tokens,
    node_paths,
    our_tokens,
    tokens_of,
)  # fmt: skip
from upstream_check.verify_beams import verify_redrafter

EAGLE_CASES = Path("tests/model/eagle/test_sample_accept_draft_tokens_plugin.py")


def verify_medusa(nodes: int, heads: int) -> Tally:
    """Arrange and verify drafts of Medusa heads in a tree of `nodes` nodes."""
    tree = grow_tree(assumed_accuracy(heads), nodes)
    session = MedusaSession(tree, heads)
    rng, tally = np.random.default_rng(nodes), Tally(f"medusa, {nodes} nodes of {heads} heads")
    for _ in range(DRAFTS):
        logits = torch.from_numpy(rng.normal(size=(heads, 1, VOCABULARY)))
        logits[..., 0] = -10  # see `Target.after`
        drafted = session.draft(logits)
        draft, target = medusa_draft(tree, heads, logits), Target(rng)
        ours = our_tokens(draft, target)
        paths = token_paths(session.paths, drafted)
        tally.require_equal(
            {(), *(tokens_of(draft, found) for found in node_paths(draft))}, set(paths.values())
        )
        rows = [target.after(paths[place]) for place in range(nodes + 1)]
        tally.compare(ours, session.verify(drafted, np.stack(rows)))
    return tally


class MedusaSession:
    """What TensorRT-LLM's Python runtime does for one sequence with Medusa heads."""

    def __init__(self, tree: Sequence[TreePath], heads: int) -> None:
        from tensorrt_llm.runtime.generation import GenerationSession
        from tensorrt_llm.runtime.medusa_utils import _medusa_setup

        torch.Tensor.cuda = lambda tensor, *_: tensor  # type: ignore[method-assign]
        self._runtime, self._made = GenerationSession, _medusa_setup(list(map(list, tree)), heads)
        self._own = SimpleNamespace(
            num_draft_tokens=len(tree), num_medusa_heads=heads,
            medusa_topks=self._made.medusa_topks, medusa_paths=self._made.medusa_paths,
        )  # fmt: skip
        self.paths: list[list[int]] = self._made.medusa_paths.tolist()

    def draft(self, logits: torch.Tensor) -> list[int]:
        """Return the draft tokens for the logits [heads, 1, V]."""
        flat = self._runtime.get_next_medusa_tokens(self._own, 1, logits)
        drafted: list[int] = flat[0, self._made.medusa_tree_ids[1:]].tolist()
        return drafted

    def verify(self, drafted: Sequence[int], rows: Any) -> list[int]:
        """Return the emitted tokens; `rows` [1 + n, V] are the logits of root and draft tokens."""
        ids, logits = torch.tensor([[1, *drafted]]), torch.from_numpy(rows)[None]
        _, _, (emitted,) = self._runtime.find_best_medusa_path(self._own, 1, ids, logits)
        found: list[int] = emitted.tolist()
        return found


def medusa_draft(tree: Sequence[TreePath], heads: int, logits: torch.Tensor) -> Draft:
    """Return the draft of specpipe's proposer for the logits [heads, 1, V] of all heads."""
    proposer = MedusaProposer("target", len(tree), tree)
    hidden = np.zeros((1, 1), np.float32)
    proposer.observe(EMPTY, Scores(hidden, hidden), Verdict((), 1))
    asking = proposer.propose(heads)
    next(asking)
    shares, tokens = logits[:, 0].softmax(-1).sort(-1, descending=True)
    try:
        asking.send(Guesses(tokens.numpy(), shares.numpy()))
    except StopIteration as ended:
        draft: Draft = ended.value
        return draft
    raise AssertionError("the proposer asked twice")


def token_paths(paths: Sequence[Sequence[int]], drafted: Sequence[int]) -> dict[int, Tokens]:
    """Return the draft tokens from the root to every row; rows of padding are -1."""
    found: dict[int, Tokens] = {0: ()}
    for path in paths:
        tokens: Tokens = ()
        for place in path[1:]:
            if place < 0:
                break
            tokens = (*tokens, int(drafted[place - 1]))
            found[place] = tokens
    return found


def verify_eagle(tree: Path) -> Tally:
    """Compare with the verdicts that TensorRT-LLM's tests of its plugin state."""
    tally = Tally("eagle, those stated by TensorRT-LLM's own tests")
    for case in stated_cases(tree / EAGLE_CASES):
        logits, drafted, lengths, temperature, *_, paths, is_greedy, emitted, counts, _ = case
        if not int(is_greedy[0]) and bool((temperature > 0).any()):
            continue
        start = 0
        for number, length in enumerate(lengths.tolist()):
            rows = logits[start : start + length + 1]
            start += length + 1
            draft = path_draft(paths[number].tolist(), drafted[number].tolist(), length)
            ours = stated_verdict(draft, rows.argmax(-1).tolist())
            theirs = emitted[number, : int(counts[number])].tolist()
            tally.compare(ours, theirs, f"request {number}: ")
    return tally


def stated_cases(file: Path) -> list[list[Any]]:
    """Return the cases of the file's `load_test_cases`, whose tensors are made on this CPU."""
    if not file.exists():
        return []
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    found = next(n for n in nodes if getattr(n, "name", "") == "load_test_cases")
    module = ast.Module([found], [])

    def tensor(values: Any, *, device: str = "", **named: Any) -> torch.Tensor:
        return torch.tensor(values, **named)

    kinds = {name: getattr(torch, name) for name in ("float", "float32", "int32")}
    names: dict[str, Any] = {"torch": SimpleNamespace(tensor=tensor, **kinds)}
    exec(compile(module, str(file), "exec"), names)
    cases: list[list[Any]] = names["load_test_cases"]()
    return cases


def path_draft(paths: Sequence[Sequence[int]], drafted: Sequence[int], length: int) -> Draft:
    """Return the draft of a request: row 0 of a path is the root, row k draft token k - 1."""
    parents = [ROOT] * length
    for path in paths:
        for before, place in pairwise(path):
            if 0 < place <= length:
                parents[place - 1] = before - 1
    return Draft(np.array(drafted[:length], np.int64), np.array(parents, np.int64))


def stated_verdict(draft: Draft, likeliest: Sequence[int]) -> list[int]:
    """Return what the CPU engine's rule emits; `likeliest` has the target's token of every row."""
    return greedy(draft, lambda path: int(likeliest[path[-1] + 1 if path else 0])).emitted(draft)


def main() -> None:
    """Print a line for each method."""
    tree = Path(sys.argv[1])
    runner.prepare(tree, sys.argv[2])
    plugins.install(0, 1)
    for nodes, heads in ((7, 3), (25, 4)):
        print(verify_medusa(nodes, heads).line(), flush=True)
    for beams, length in ((1, 4), (3, 3), (5, 4)):
        print(verify_redrafter(beams, length).line(), flush=True)
    print(verify_eagle(tree).line(), flush=True)


if __name__ == "__main__":
    main()
