"""Tiny random models of every family, quantized copies of them, and heads and drafters for them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.helpers.families import WORLDS, make_family
from tests.helpers.models import make_heads, make_redrafter
from tests.helpers.packed_models import pack_model

_IDS = {"bos_token_id": 93, "eos_token_id": 94, "pad_token_id": 95}
_SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 256, **_IDS,
}  # fmt: skip
_NEOX = {name: value for name, value in _SMALL.items() if name != "num_key_value_heads"}
_EVEN = {"num_key_value_heads": 4}
_WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_QWEN_EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64, "norm_topk_prob": False,
}  # fmt: skip
_GPT2 = {"n_embd": 64, "n_layer": 4, "n_head": 4, "vocab_size": 96, "n_positions": 256,
         **_IDS}  # fmt: skip
_FALCON = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 96,
    "bias": False, "alibi": False, **_IDS,
}  # fmt: skip
# name -> class of the config, and its keys
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _SMALL),
    "llama97": ("Llama", _SMALL | {"vocab_size": 97}),
    "llama_mha": ("Llama", _SMALL | _EVEN),
    "llama3": ("Llama", _SMALL | {"rope_theta": 500000.0, "head_dim": 32, "rope_scaling": _LLAMA3,
                                  "tie_word_embeddings": True}),
    "draft": ("Llama", _SMALL | {"num_hidden_layers": 2}),
    "mistral": ("Mistral", _SMALL | {"sliding_window": None}),
    "mixtral": ("Mixtral", _SMALL | _EXPERTS),
    "qwen2": ("Qwen2", _SMALL),
    "qwen2_moe": ("Qwen2Moe", _SMALL | _QWEN_EXPERTS),
    "gemma": ("Gemma", _SMALL | {"head_dim": 16}),
    "gemma2": ("Gemma2", _SMALL | {"head_dim": 16, "query_pre_attn_scalar": 16,
                                   "sliding_window": 256}),
    "phi": ("Phi", _SMALL | _EVEN | {"partial_rotary_factor": 0.5}),
    "phi3": ("Phi3", _SMALL | {"sliding_window": None}),
    "gpt2": ("GPT2", _GPT2),
    "starcoder2": ("Starcoder2", _SMALL | {"sliding_window": None}),
    "gptneox": ("GPTNeoX", _NEOX | {"intermediate_size": 256, "rotary_pct": 0.25}),
    "falcon": ("Falcon", _FALCON | {"multi_query": True, "parallel_attn": True,
                                    "new_decoder_architecture": False}),
    "falcon40": ("Falcon", _FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True}),
    "wide": ("Llama", _SMALL | _WIDE),
    "wide_qwen2": ("Qwen2", _SMALL | _WIDE),
    "wide_moe": ("Mixtral", _SMALL | _WIDE | {"intermediate_size": 256} | _EXPERTS),
}  # fmt: skip
_TOPS = {"int8": 127, "int4": 7}


@dataclass(frozen=True)
class Made:
    """The folders of a case."""

    model: Path  # what is converted
    reference: Path  # the same weights for transformers
    draft: Path | None = None
    drafter: Path | None = None  # heads or a drafter


class ModelMaker:
    """Makes models below one folder, each once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self, model: str, speculation: dict[str, Any]) -> Made:
        """Return the folders of a model, e.g. `llama`, `awq:wide` or `GemmaForCausalLM/plain`."""
        folder, reference = self._model(model)
        method = speculation.get("method", "none")
        draft = self._plain("draft") if method == "draft_model" else None
        base = model.split(":")[-1]
        makes = _DRAFTERS.get(method)
        drafter = self._once(f"{method}_{base}", lambda out: makes(out, folder)) if makes else None
        return Made(folder, reference, draft, drafter)

    def _model(self, model: str) -> tuple[Path, Path]:
        if "/" in model:
            return self._family(*model.split("/"))
        if ":" not in model:
            folder = self._plain(model)
            return folder, folder
        how, base = model.split(":")
        source = self._plain(base)
        if how in _TOPS:
            return source, self._once(f"{model}_meant", lambda out: _round(source, out, _TOPS[how]))
        packed, meant = self.root / model, self.root / f"{model}_meant"
        if not meant.exists():
            _pack(source, packed, meant, how)
        return packed, meant

    def _plain(self, name: str) -> Path:
        return self._once(name, lambda out: _write(out, *MODELS[name]))

    def _family(self, architecture: str, variant: str) -> tuple[Path, Path]:
        name = f"{architecture}_{variant}".replace(" ", "_")
        plain = self._once(name, lambda out: make_family(out, architecture, variant))
        rewrite = WORLDS[architecture].rewrite
        if rewrite is None:
            return plain, plain

        def copy(out: Path) -> None:
            shutil.copytree(plain, out)
            rewrite(out)

        return self._once(f"{name}_rewritten", copy), plain

    def _once(self, name: str, make: Callable[[Path], Any]) -> Path:
        folder = self.root / name
        if not folder.exists():
            make(folder)
        return folder


def _write(folder: Path, kind: str, keys: dict[str, Any]) -> None:
    """Write a random model whose norms and biases are random, too, and a tokenizer."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**keys)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    _write_tokenizer(folder, config.vocab_size)


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    """Write a tokenizer of the words w0, w1 ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{i}": i for i in range(vocabulary - 3)}
    words |= {name: vocabulary - 3 + i for i, name in enumerate(("<s>", "</s>", "<pad>"))}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="w0"
    ).save_pretrained(folder)


def _round(source: Path, out: Path, top: int) -> None:
    """Write the weights that `trtllm-build` computes with: a scale for every row."""
    shutil.copytree(source, out)
    tensors = load_file(source / "model.safetensors")
    for name, weight in tensors.items():
        if name.endswith("_proj.weight"):
            half = weight.half().float()
            scale = (half.abs().amax(1, keepdim=True) / top).half().float()
            tensors[name] = ((half / scale).round().clamp(-top - 1, top) * scale).contiguous()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})


def _pack(source: Path, packed: Path, meant: Path, how: str) -> None:
    """Write `source` as others quantize it, and what its weights then are."""
    half = packed.with_name(f"{source.name}_half_of_{how}")
    for folder in (half, packed):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, half)
    halves = {n: t.half() for n, t in load_file(source / "model.safetensors").items()}
    save_file(halves, half / "model.safetensors", {"format": "pt"})
    weights = pack_model(half, packed, how)
    shutil.copytree(source, meant)
    wide = {name: tensor.float().contiguous() for name, tensor in weights.items()}
    save_file(wide, meant / "model.safetensors", {"format": "pt"})


def _sizes(model: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((model / "config.json").read_text())
    return facts


def _medusa(out: Path, model: Path) -> None:
    facts = _sizes(model)
    make_heads(out, seed=2, hidden=facts["hidden_size"], vocab=facts["vocab_size"])
    heads = {"medusa_num_heads": 3, "medusa_num_layers": 1}
    (out / "config.json").write_text(json.dumps(heads))


def _redrafter(out: Path, model: Path) -> None:
    facts = _sizes(model)
    width, vocabulary = facts["hidden_size"], facts["vocab_size"]
    make_redrafter(out, seed=2, hidden=width, exit_dim=2 * width, vocab=vocabulary)


def _eagle(out: Path, model: Path) -> None:
    """Write a drafter of one layer with the sizes of its target."""
    facts = _sizes(model)
    width, inner = facts["hidden_size"], facts["intermediate_size"]
    keys = facts["num_key_value_heads"] * (width // facts["num_attention_heads"])
    layer = "layers.0."
    shapes = {
        "embed_tokens": (facts["vocab_size"], width), "fc": (width, 2 * width),
        f"{layer}self_attn.q_proj": (width, width), f"{layer}self_attn.k_proj": (keys, width),
        f"{layer}self_attn.v_proj": (keys, width), f"{layer}self_attn.o_proj": (width, width),
        f"{layer}mlp.gate_proj": (inner, width), f"{layer}mlp.up_proj": (inner, width),
        f"{layer}mlp.down_proj": (width, inner),
    }  # fmt: skip
    torch.manual_seed(2)
    tensors = {f"{name}.weight": torch.randn(shape) * 0.1 for name, shape in shapes.items()}
    tensors["fc.bias"] = torch.randn(width) * 0.1
    tensors[f"{layer}post_attention_layernorm.weight"] = 1 + torch.randn(width) * 0.1
    out.mkdir(parents=True)
    save_file(tensors, out / "model.safetensors")
    own = facts | {"num_hidden_layers": 1, "architectures": ["LlamaForCausalLM"]}
    (out / "config.json").write_text(json.dumps(own))


_DRAFTERS: dict[str, Callable[[Path, Path], None]] = {
    "medusa": _medusa, "redrafter": _redrafter, "eagle": _eagle,
}  # fmt: skip
