"""The tensors of a GGUF file under the names, and in the layout, that Hugging Face's files have.

llama.cpp's converter renames all tensors, and changes some: it reorders the rows of Llama's queries
and keys, adds 1 to Gemma's norms, turns GPT-2's matrices, and stacks experts. All of that is undone
here while rows are read; values are dequantised by `gguf`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from specpipe.checkpoint.gguf.file import GgufFile

if TYPE_CHECKING:
    import torch

_TABLES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
}  # fmt: skip
_LLAMA = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    **{f"ffn_{n}_shexp": f"mlp.shared_expert.{n}_proj" for n in ("gate", "up", "down")},
    **{f"ffn_{n}_exps": f"mlp.experts.*.{n}_proj" for n in ("gate", "up", "down")},
}  # fmt: skip
_GPT2 = {
    "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
}  # fmt: skip
_FALCON = {
    "attn_norm": "input_layernorm", "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense", "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}  # fmt: skip
# Tensors that config.json stands for, and constants that old files repeat in every layer.
_IN_CONFIG = re.compile(
    r"(blk\.\d+\.)?(rope_freqs|rope_factors_(long|short)|attn_rot_embd)(\.weight)?"
)
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


@dataclass(frozen=True)
class Spelling:
    """How Hugging Face spells the tensors of one architecture."""

    tables: Mapping[str, str]
    layers: str  # before the number of a layer
    parts: Mapping[str, str]
    turned: tuple[str, ...] = ()  # parts whose matrices are [in, out]
    interleaved: Mapping[str, str] | None = None  # parts -> which of its heads llama.cpp reordered
    one_more: bool = False  # norms hold 1 + w


_HEADS = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
_NORMED = {**_LLAMA, "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA2 = {
    **_LLAMA, "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_FUSED = {**_LLAMA, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_PLAIN = {**_LLAMA, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
_OF_GPT2 = {
    "token_embd": "transformer.wte", "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f", "output": "lm_head",
}  # fmt: skip
_OF_FALCON = {
    "token_embd": "transformer.word_embeddings", "output_norm": "transformer.ln_f",
    "output": "lm_head",
}  # fmt: skip
_MATRICES = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
SPELLINGS: dict[str, Spelling] = {  # by `general.architecture`
    "llama": Spelling(_TABLES, "model.layers", _LLAMA, interleaved=_HEADS),
    "qwen2": Spelling(_TABLES, "model.layers", _LLAMA),
    "qwen2moe": Spelling(_TABLES, "model.layers", {**_LLAMA, **_EXPERTS}),
    "qwen3": Spelling(_TABLES, "model.layers", _NORMED),
    "gemma2": Spelling(_TABLES, "model.layers", _GEMMA2, one_more=True),
    "phi3": Spelling(_TABLES, "model.layers", _FUSED),
    "starcoder2": Spelling(_TABLES, "model.layers", _PLAIN),
    "gpt2": Spelling(_OF_GPT2, "transformer.h", _GPT2, turned=_MATRICES),
    "falcon": Spelling(_OF_FALCON, "transformer.h", _FALCON),
}

Read = Callable[[int, int], "torch.Tensor"]  # rows of one of Hugging Face's tensors


@dataclass(frozen=True)
class _Entry:
    """One of Hugging Face's tensors: what it is read from, and how."""

    stored: str  # name in the file
    shape: tuple[int, ...]
    read: Read


class GgufTensors:
    """An open file; see `TensorFile`. Tensors without a name here keep that of the file."""

    def __init__(self, path: Path) -> None:
        """Open `path`, whose architecture is one of `SPELLINGS`; raises what `GgufFile` raises."""
        self._file = GgufFile(path)
        self._spelling = SPELLINGS[self._file.header.architecture]
        self._entries: dict[str, _Entry] = {}
        for stored in self._file.names():
            if not _IN_CONFIG.fullmatch(stored):
                self._entries |= self._entries_of(stored)

    def close(self) -> None:
        """Close the file; nothing can be read after that."""
        self._file.close()

    def names(self) -> set[str]:
        """Return the name of every tensor."""
        return set(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; raises KeyError if there is none."""
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """Return float32, in which every tensor is read; raises KeyError if there is none."""
        return self._file.dtype(self._entries[name].stored)

    def read(self, name: str) -> "torch.Tensor":
        """Return a whole tensor; raises KeyError if there is none."""
        entry = self._entries[name]
        return entry.read(0, entry.shape[0])

    def rows(self, name: str, begin: int, end: int) -> "torch.Tensor":
        """Return the slices [begin, end) of a tensor's first dimension."""
        return self._entries[name].read(begin, end)

    def _entries_of(self, stored: str) -> dict[str, _Entry]:
        """Return what one tensor of the file holds: itself, or a matrix for every expert."""
        shape, (part, name) = self._file.shape(stored), self._name(stored)
        if "*" in name:
            return {
                name.replace("*", str(index)): _Entry(
                    stored, shape[1:], self._expert(stored, index)
                )
                for index in range(shape[0])
            }
        if part == "ffn_gate_inp_shexp" and len(shape) == 1:
            return {name: _Entry(stored, (1, *shape), lambda a, b: self._file.read(stored)[None])}
        if part in self._spelling.turned and len(shape) == 2:
            return {name: _Entry(stored, shape[::-1], self._turned(stored))}
        return {name: _Entry(stored, shape, self._reader(stored, part))}

    def _name(self, stored: str) -> tuple[str, str]:
        """Return llama.cpp's name of the part, and Hugging Face's whole name."""
        if (match := _LAYER.fullmatch(stored)) and match[2] in self._spelling.parts:
            inner = f"{self._spelling.parts[match[2]]}.{match[3]}"
            return match[2], f"{self._spelling.layers}.{match[1]}.{inner}"
        part, _, kind = stored.rpartition(".")
        return (
            part,
            f"{self._spelling.tables[part]}.{kind}" if part in self._spelling.tables else stored,
        )

    def _reader(self, stored: str, part: str) -> Read:
        file = self._file
        if part in (self._spelling.interleaved or {}):
            return self._sorted(stored, part)
        if self._spelling.one_more and stored.endswith("norm.weight"):
            return lambda begin, end: file.rows(stored, begin, end) - 1
        return lambda begin, end: file.rows(stored, begin, end)

    def _expert(self, stored: str, index: int) -> Read:
        file = self._file
        return lambda begin, end: file.rows(stored, index, index + 1)[0, begin:end]

    def _turned(self, stored: str) -> Read:
        file = self._file
        return lambda begin, end: file.read(stored).t()[begin:end]

    def _sorted(self, stored: str, part: str) -> Read:
        """Read rows of rotary pairs, which llama.cpp stores one after the other in every head."""
        heads = self._file.header.fact((self._spelling.interleaved or {})[part])
        heads = heads or self._file.header.fact(_HEADS["attn_q"])
        size = self._file.shape(stored)[0] // int(heads if isinstance(heads, int) else 1)
        file = self._file

        def rows(begin: int, end: int) -> "torch.Tensor":
            first, last = begin // size * size, -(-end // size) * size
            pairs = file.rows(stored, first, last)
            halves = pairs.reshape(-1, size // 2, 2, *pairs.shape[1:]).transpose(1, 2)
            return halves.reshape(pairs.shape)[begin - first : end - first]

        return rows
