"""Llama checkpoints of any size with random weights, for scripts that measure memory and time."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

SHARD_BYTES = 5 * 10**9  # as in published checkpoints
VALUES = 33_554_393  # a prime: a tensor of another length begins elsewhere in the repeated values
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Llama:
    """The sizes of a model with an output layer of its own."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    layers: int
    vocabulary: int
    head_size: int = 128
    positions: int = 8192

    def config(self) -> dict[str, object]:
        """Return config.json."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "hidden_size": self.hidden, "intermediate_size": self.inner,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_size,
            "vocab_size": self.vocabulary, "max_position_embeddings": self.positions,
            "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
            "torch_dtype": "bfloat16", "hidden_act": "silu",
        }  # fmt: skip

    def shapes(self) -> Shapes:
        """Return the shapes of all tensors by name."""
        query, key = self.heads * self.head_size, self.kv_heads * self.head_size
        hidden, inner = self.hidden, self.inner
        layer = {
            "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (query, hidden), "self_attn.k_proj": (key, hidden),
            "self_attn.v_proj": (key, hidden), "self_attn.o_proj": (hidden, query),
            "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }  # fmt: skip
        numbered = range(self.layers)
        return {
            "model.embed_tokens.weight": (self.vocabulary, hidden),
            **{f"model.layers.{i}.{n}.weight": s for i in numbered for n, s in layer.items()},
            "model.norm.weight": (hidden,),
            "lm_head.weight": (self.vocabulary, hidden),
        }


def write_llama(folder: Path, model: Llama) -> None:
    """Write a sharded checkpoint in bfloat16, and a small tokenizer."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model.config()))
    write_small_tokenizer(folder)
    weight_map = {}
    for number, shard in enumerate(_shards(model.shapes())):
        name = f"model-{number:05}.safetensors"
        _write_shard(folder / name, shard)
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_small_tokenizer(folder: Path) -> None:
    """Write a byte tokenizer: the conversion needs one, its size is irrelevant."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["a"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    fast.save_pretrained(folder)


def _shards(shapes: Shapes) -> list[Shapes]:
    """Distribute the tensors over files of a usual size."""
    out: list[Shapes] = [{}]
    size = 0
    for name, shape in shapes.items():
        nbytes = prod(shape) * 2
        if out[-1] and size + nbytes > SHARD_BYTES:
            out.append({})
            size = 0
        out[-1][name] = shape
        size += nbytes
    return out


def _write_shard(path: Path, shapes: Shapes) -> None:
    """Write one file; the same random values over and over."""
    import torch

    torch.manual_seed(0)
    block = (torch.randn(VALUES) * 0.02).bfloat16().view(torch.uint8).numpy().tobytes()
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + prod(shape) * 2
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while offset > 0:
            offset -= file.write(block[: min(len(block), offset)])
