"""The models that are compared with Model-Optimizer's export: the same bytes with any library.

The weights are drawn by name with numpy's frozen generator, so that what the peer wrote of them
once (tests/data/modelopt.json) can be compared wherever the tests run.
"""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from specpipe.checkpoint.convert import config_json, effective
from specpipe.checkpoint.families import find_family, read_facts
from specpipe.checkpoint.quantized.formats import PLAIN, metadata
from specpipe.checkpoint.source import open_source, read_tensors
from specpipe.checkpoint.transfer import write_tensors
from specpipe.core.divisibility import Parallel
from tests.helpers.sharding import Files, read_ranks

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64, "head_dim": 8,
    "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0,
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": None,
}  # fmt: skip
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> the peer's name of it, config.json
    "llama": ("llama", {**SIZES, **LLAMA}),
    "llama of one group": ("llama", {**SIZES, **LLAMA, "num_key_value_heads": 1}),
    "llama of 97 tokens": ("llama", {**SIZES, **LLAMA, "vocab_size": 97}),
    "qwen2": ("qwen", {**SIZES, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}),
    "mixtral": ("llama", {
        **SIZES, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
        "num_local_experts": 4, "num_experts_per_tok": 2,
    }),
    "gemma": ("gemma", {
        **SIZES, "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "head_dim": 16,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    }),
    "gpt2": ("gpt", {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 32, "n_layer": 2,
        "n_head": 4, "n_positions": 64, "vocab_size": 96, "bos_token_id": None, "eos_token_id": 0,
        "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
    }),
    "phi3": ("phi3", {**SIZES, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}),
}  # fmt: skip


def write_model(folder: Path, name: str) -> Path:
    """Write a model in float16 into the new folder `folder`, as transformers would."""
    folder.mkdir(parents=True)
    config = {**MODELS[name][1], "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    family = find_family(config)
    plans = family.tensors(read_facts(config, "float16"))
    shapes = {n: s for p in plans for n, s in zip(p.sources, p.source_shapes, strict=True)}
    save_file({n: draw(n, s) for n, s in shapes.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    return folder


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the values of one tensor, which its name decides."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape) * 0.2
    return torch.from_numpy(values.astype(np.float16))


def convert(source: Path, out: Path, tp: int, pp: int) -> tuple[Files, dict[str, Any]]:
    """Convert as the peer does, with the embedding cut wherever tp is above 1; no tokenizer."""
    out.mkdir(parents=True)
    found = open_source(source)
    family = find_family(found.hf_config)
    model = read_facts(found.hf_config, "float16")
    parallel = effective(Parallel(tp, pp, 1, tp > 1), family)
    with read_tensors(found.weights) as reader:
        work = [(reader, plan) for plan in family.tensors(model)]
        write_tensors(work, model, parallel, out, lambda done, total: None)
    config = {**config_json(family, model, parallel), "quantization": metadata(PLAIN, model)}
    return read_ranks(out), config


def fact(tensor: torch.Tensor) -> str:
    """Return type, shape and the first digits of the sha256 of a tensor's bytes."""
    raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    shape = "x".join(map(str, tensor.shape))
    return f"{str(tensor.dtype)[6:]} {shape} {hashlib.sha256(raw).hexdigest()[:12]}"
