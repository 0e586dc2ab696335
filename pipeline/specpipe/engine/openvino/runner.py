"""The OpenVINO runner: one sequence, its KV cache, and steps that verify any draft tree."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from specpipe.contracts import (
    ROOT,
    Draft,
    Extensions,
    Guesses,
    Ints,
    Logits,
    Scores,
    Verdict,
)
from specpipe.engine.openvino.network import mask_name, windows
from specpipe.engine.openvino.rope import RopeTable
from specpipe.engine.openvino.visibility import Step, depths, mask
from specpipe.errors import Unsupported
from specpipe.model import ModelConfig

BLOCK = 64  # cached rows are passed in whole blocks, since every new shape costs the plugin time
# Prompt tokens per prefill call; other streams wait for one such call. Smaller chunks cost more per
# token and larger ones do not cost less (scripts/bench-prefill). The size is constant, so that the
# output does not depend on load.
CHUNK = BLOCK


@dataclass
class Graph:
    """A compiled model and its only infer request, shared by all runners; not thread-safe."""

    compiled: ov.CompiledModel
    model: ModelConfig
    table: RopeTable
    max_seq_len: int
    bfloat16: bool
    heads: ov.InferRequest | None = None
    drafter: ov.InferRequest | None = None
    request: ov.InferRequest = field(init=False)
    ports: dict[str, ov.ConstOutput] = field(init=False)
    bound: "tuple[OpenVinoRunner, int] | None" = None  # owner and rows of the bound cache

    def __post_init__(self) -> None:
        self.request = self.compiled.create_infer_request()
        self.ports = {port.get_any_name(): port for port in self.compiled.inputs}

    def set(self, name: str, array: NDArray[Any]) -> None:
        """Bind an input to `array` without copying; the array must outlive the next call."""
        self.request.set_tensor(self.ports[name], ov.Tensor(array, shared_memory=True))


class OpenVinoRunner:
    """One sequence; see `Runner`. Tokens without cached rows are *pending*; the last is the root.

    `score` returns views of the engine's memory, which are valid until the next call of the graph.
    """

    def __init__(self, graph: Graph, step_width: int = 0) -> None:
        model = graph.model
        self.vocab_size = model.vocab_size
        self.max_seq_len = graph.max_seq_len
        self._graph = graph
        self._table = graph.table
        self._scale = np.float32(model.attention_scale)
        self._step_width = step_width
        self._width = model.num_key_value_heads * model.head_size
        rows = -(-graph.max_seq_len // BLOCK) * BLOCK
        kind = np.uint16 if graph.bfloat16 else np.float32
        # Zeros, not garbage: masked rows are multiplied by a weight of 0, and 0 * NaN is NaN.
        self._cache = np.zeros((2 * model.num_hidden_layers, rows, self._width), kind)
        self._tokens: list[int] = []
        self._speculates = False  # steps are padded from the first draft of the sequence on
        self._cached = 0
        self._fresh: NDArray[Any] = self._cache[:, :0]

    def start(self, prompt: Sequence[int]) -> None:
        """Start a new sequence with `prompt`."""
        self._tokens, self._cached, self._speculates = list(prompt), 0, False

    def follow(self, sequence: Sequence[int]) -> None:
        """Switch to `sequence`; keep the cached rows of the longest common prefix."""
        new = list(sequence)
        limit = min(self._cached, len(new) - 1)
        old = np.asarray(self._tokens[:limit], np.int64)
        differs = np.flatnonzero(old != np.asarray(new[:limit], np.int64))
        self._cached = int(differs[0]) if len(differs) else limit
        self._tokens = new

    def prefill(self) -> bool:
        """Run CHUNK pending tokens, if more than CHUNK are pending."""
        if len(self._tokens) - self._cached <= CHUNK:
            return False
        end = self._cached + CHUNK
        tokens = np.asarray(self._tokens[self._cached : end], np.int64)
        self._call(tokens, np.arange(-1, CHUNK - 1), np.array([CHUNK - 1]))
        self._keep(np.arange(CHUNK))
        return True

    def score(self, draft: Draft) -> Scores:
        """Run the pending tokens and the draft's nodes.

        The last CHUNK pending tokens and the nodes run in one call.
        """
        while self.prefill():
            pass
        self._speculates = self._speculates or len(draft) > 0
        pending = self._tokens[self._cached :]
        first = len(pending) - 1  # index of the root among the new tokens
        tokens = np.concatenate([np.asarray(pending, np.int64), draft.tokens])
        parents = np.concatenate([np.arange(-1, first), _shift(draft.parents, first)])
        rows = np.arange(first, len(tokens))
        return self._call(tokens, parents, rows)

    def commit(self, draft: Draft, verdict: Verdict) -> None:
        """Keep the rows of the pending tokens and of the accepted path."""
        first = len(self._tokens) - self._cached
        path = [first + n for n in verdict.path]
        self._keep(np.array([*range(first), *path], np.int64))
        self._tokens += verdict.emitted(draft)

    def guess(self, hidden: Logits) -> Guesses:
        """Run the heads on a hidden state [D]; raises Unsupported if there are none."""
        heads = self._graph.heads
        if heads is None:
            raise Unsupported(
                "this engine has no Medusa heads",
                hint="set speculation.heads and run `specpipe build` again",
            )
        heads.infer({"hidden": hidden[None]}, share_inputs=True)
        tokens, probs = (heads.get_tensor(name).data for name in ("tokens", "probs"))
        return Guesses(tokens.astype(np.int64), probs.astype(np.float64))

    def extend(self, hidden: Logits, states: Logits, tokens: Ints) -> Extensions:
        """Run the drafter on B draft paths; raises Unsupported if there is none."""
        drafter = self._graph.drafter
        if drafter is None:
            raise Unsupported(
                "this engine has no ReDrafter",
                hint="set speculation.heads and run `specpipe build` again",
            )
        inputs = {"hidden": hidden[None], "states": states, "last": tokens.astype(np.int32)}
        drafter.infer(inputs, share_inputs=True)
        names = ("tokens", "probs", "next_states")
        best, probs, after = (drafter.get_tensor(name).data for name in names)
        return Extensions(best.astype(np.int64), probs.astype(np.float64), after.copy())

    def _keep(self, rows: Ints) -> None:
        """Append these new rows to the cached ones."""
        begin = self._cached
        fresh = self._fresh[:, : len(rows)] if _is_prefix(rows) else self._fresh[:, rows]
        self._cache[:, begin : begin + len(rows)] = fresh
        self._cached = begin + len(rows)

    def _call(self, tokens: Ints, parents: Ints, rows: Ints) -> Scores:
        """Run new tokens; `parents` are indices among them, -1: the end of the cache."""
        pads = self._speculates and len(rows) == len(tokens)
        count = max(len(tokens), self._step_width if pads else 0)
        depth = depths(parents)
        positions = np.zeros(count, np.int64)
        # Only scratch nodes can lie beyond the end of the sequence; their position does not matter.
        positions[: len(tokens)] = np.minimum(self._cached + depth, self.max_seq_len - 1)
        padded = np.zeros(count, np.int32)
        padded[: len(tokens)] = tokens
        graph = self._graph
        past = self._bind()
        inputs = {
            "tokens": padded,
            "rows": _pad(rows, count if count > len(tokens) else len(rows)),
            **self._where(Step(parents, positions, self._cached, past)),
        }
        for name, array in inputs.items():
            graph.set(name, array)
        graph.request.infer()
        out = graph.request
        raw = out.get_tensor("kv")
        self._fresh = raw.data.view(self._cache.dtype).reshape(self._cache.shape[0], count, -1)
        logits, hidden = (out.get_tensor(name).data[: len(rows)] for name in ("logits", "hidden"))
        return Scores(logits, hidden)

    def _where(self, step: Step) -> dict[str, NDArray[Any]]:
        """Return masks, positions and rotary tables of the new tokens, those that the graph has."""
        model, ports = self._graph.model, self._graph.ports
        found: dict[str, NDArray[Any]] = {
            mask_name(window): mask(step, model, window) for window in windows(model)
        }
        if "positions" in ports:
            found["positions"] = step.positions.astype(np.int32)
        if "key_cos" in ports:
            found |= self._rotary(step.positions)
        return found

    def _rotary(self, positions: Ints) -> dict[str, NDArray[np.float32]]:
        cos, sin = (t[positions][None, :, None] for t in (self._table.cos, self._table.sin))
        return {
            "key_cos": cos,
            "key_sin": sin,
            "query_cos": cos * self._scale,
            "query_sin": sin * self._scale,
        }

    def _bind(self) -> int:
        """Bind the prefix of the cache, in whole blocks; returns the number of its rows."""
        past = max(BLOCK, -(-self._cached // BLOCK) * BLOCK)
        graph, shape = self._graph, [1, past, self._width]
        if graph.bound is None or graph.bound[0] is not self or graph.bound[1] != past:
            kind = ov.Type.bf16 if graph.bfloat16 else ov.Type.f32
            for i in range(len(self._cache) // 2):
                for k, name in enumerate(("key", "value")):
                    view = ov.Tensor(self._cache[2 * i + k, :past], shape, kind)
                    graph.request.set_tensor(graph.ports[f"{name}.{i}"], view)
            graph.bound = (self, past)
        return past


def _shift(parents: Ints, by: int) -> Ints:
    """Turn indices into the draft into indices among the new tokens."""
    return np.where(parents == ROOT, by, parents + by + 1)


def _is_prefix(rows: Ints) -> bool:
    return bool(len(rows) == 0 or (rows[-1] == len(rows) - 1 and rows[0] == 0))


def _pad(rows: Ints, count: int) -> NDArray[np.int32]:
    out = np.zeros(count, np.int32)
    out[: len(rows)] = rows
    return out
