"""ReDrafter's beams, merged and verified by TensorRT-LLM's network on the stand-in for TensorRT."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from specpipe.core.contracts import ROOT, Draft
from upstream_check import network
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


def verify_redrafter(beams: int, length: int) -> Tally:
    """Merge and verify `beams` beams of `length` draft tokens, greedily."""
    rng, tally = np.random.default_rng(beams), Tally(f"redrafter, {beams} beams of {length} tokens")
    for _ in range(DRAFTS):
        rows = random_beams(rng, beams, length)
        merged, indices = merge_beams(rows)
        draft, target = beam_draft(rows), Target(rng)
        ours = our_tokens(draft, target)
        paths = {int(indices[b][d]): tuple(rows[b][1 : d + 1])
                 for b in range(beams) for d in range(length + 1)}  # fmt: skip
        tally.require_equal(
            {(), *(tokens_of(draft, found) for found in node_paths(draft))}, set(paths.values())
        )
        assert len(merged) == len(paths), "the rows of the merged tree"
        logits = np.stack([target.after(paths[place]) for place in range(len(merged))])
        chosen = verify_beams(rng, rows, indices, logits)
        tally.compare(ours, chosen)
    return tally


def random_beams(rng: np.random.Generator, beams: int, length: int) -> list[list[int]]:
    """Return different beams [1 + length] that share a root and some prefixes."""
    found: list[list[int]] = []
    while len(found) < beams:
        beam = [1]
        for _ in range(length):
            beam.append(int(rng.integers(1, 4) if rng.random() < 0.8 else rng.integers(4, 9)))
        if beam not in found:
            found.append(beam)
    return found


def beam_draft(rows: Sequence[Sequence[int]]) -> Draft:
    """Return beams as a draft in which common prefixes are one path."""
    places: dict[Tokens, int] = {(): ROOT}
    tokens, parents = list[int](), list[int]()
    for depth in range(1, len(rows[0])):
        for row in rows:
            path = tuple(row[1 : depth + 1])
            if path not in places:
                places[path] = len(tokens)
                tokens.append(row[depth])
                parents.append(places[path[:-1]])
    return Draft(np.array(tokens, np.int64), np.array(parents, np.int64))


def merge_beams(rows: Sequence[Sequence[int]]) -> tuple[list[int], Any]:
    """Return the rows of the merged tree, and the row of every beam's tokens, by the network."""
    from tensorrt_llm.models.redrafter.redrafter_helper import _beams2tree

    values = {"beams": torch.tensor([rows])}
    outputs = compute(
        values, lambda given: _beams2tree(given["beams"], len(rows), len(rows[0]))[:2]
    )
    return outputs[0].tolist(), outputs[1][0]


def verify_beams(
    rng: np.random.Generator, rows: Sequence[Sequence[int]], indices: Any, logits: Any
) -> list[int]:
    """Return the tokens that the network emits: those of the accepted beam, and the next."""
    from tensorrt_llm.models.redrafter.redrafter_helper import _process_gen_logits

    beams, length = len(rows), len(rows[0])
    drafted = torch.from_numpy(rng.normal(size=(1, beams, length - 1, VOCABULARY)))
    values = {
        "logits": torch.from_numpy(logits)[None].float(),
        "hidden": torch.zeros(1, len(logits), 2),
        "probs": drafted.log_softmax(-1).float(),
        "tokens": torch.tensor([rows]),
        "indices": torch.as_tensor(indices)[None],
        "rand": torch.full((1, beams, length - 1), 0.5),
    }

    def verify(given: dict[str, Any]) -> Any:
        named = (given[name] for name in ("logits", "hidden", "probs", "tokens", "indices"))
        return _process_gen_logits(*named, beams, length, True, given["rand"])

    odds, _, accepted, beam = compute(values, verify)
    count = int(accepted[0])
    return [*rows[int(beam[0])][1 : count + 1], int(odds[0].argmax())]


def compute(values: dict[str, torch.Tensor], build: Callable[[dict[str, Any]], Any]) -> list[Any]:
    """Return the outputs of a network of TensorRT-LLM for the values of its inputs."""
    from tensorrt_llm._utils import str_dtype_to_trt
    from tensorrt_llm.builder import Builder
    from tensorrt_llm.functional import Tensor
    from tensorrt_llm.network import net_guard

    network.INetworkDefinition.feed = values
    with net_guard(Builder().create_network()):
        given = {
            name: Tensor(name, str_dtype_to_trt(kind_of(value)), list(value.shape))
            for name, value in values.items()
        }
        return [output.trt_tensor.data for output in build(given)]


def kind_of(value: torch.Tensor) -> str:
    """Return TensorRT-LLM's name of the type that an input is declared with."""
    return "float32" if value.is_floating_point() else "int32"
