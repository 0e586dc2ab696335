"""The models of the tests: tiny ones with random weights in real formats, and a real one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SMOLLM2 = Path("~/.cache/specpipe/models/SmolLM2-135M-Instruct").expanduser()
TEXT = (
    "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs. "
    "How vexingly quick daft zebras jump! Grüße aus München, 東京, and 🦊🦊. "
)
CHATS = [
    ("Who jumps?", "The quick brown fox jumps over the lazy dog."),
    ("And the box?", "Pack my box with five dozen liquor jugs."),
    ("What do zebras do?", "How vexingly quick daft zebras jump!"),
    ("Greetings?", "Grüße aus München, 東京, and 🦊🦊."),
    ("Again, who?", "The fox jumps over the dog, the dog jumps over the fox."),
    ("Which box?", "My box with my jugs, my jugs with my box, my box with my jugs."),
]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_llama(
    folder: Path, *, seed: int, save: dict[str, Any] | None = None, **changes: Any
) -> Path:
    """Write a random Llama with a tokenizer into `folder`; `changes` are keys of its config."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    values: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "vocab_size": len(tokenizer), "max_position_embeddings": 4096, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "initializer_range": 0.4, "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None, **changes,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**values))
    model.save_pretrained(folder, **(save or {}))
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer() -> Any:
    """Return a byte-level BPE tokenizer of a few hundred tokens with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = TEMPLATE
    return fast


def make_heads(folder: Path, *, seed: int, heads: int = 3, layers: int = 1,
               hidden: int = 64, vocab: int | None = None,
               token_map: Sequence[int] = ()) -> dict[str, Any]:  # fmt: skip
    """Return random Medusa heads in FasterDecoding's names and write them into `folder`.

    With `vocab` every head gets an output layer of its own.
    """
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    tensors = {}
    for head in range(heads):
        for layer in range(layers):
            tensors[f"{head}.{layer}.linear.weight"] = torch.randn(hidden, hidden) * 0.2
            tensors[f"{head}.{layer}.linear.bias"] = torch.randn(hidden) * 0.2
        if vocab is not None:
            tensors[f"{head}.{layers}.weight"] = torch.randn(vocab, hidden) * 0.2
    if token_map:
        tensors["token_map"] = torch.tensor(token_map, dtype=torch.int32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "medusa_lm_head.safetensors")
    return tensors


def make_redrafter(
    folder: Path,
    *,
    seed: int,
    layers: int = 2,
    hidden: int = 64,
    exit_dim: int = 128,
    vocab: int = 320,
    rnn: bool = True,
    own_output: bool = True,
    recurrence: str | None = None,
    token_map: Sequence[int] = (),
) -> Any:
    """Return a random ReDrafter in Apple's names and write it, with its config, into `folder`."""
    import torch
    from safetensors.torch import save_file

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape) * 0.1

    torch.manual_seed(seed)
    output = {f"lm_head.{layers}.weight": matrix(vocab, exit_dim)}
    tensors = output if own_output else {}
    for layer in range(layers):
        tensors[f"lm_head.{layer}.linear.weight"] = matrix(exit_dim, exit_dim)
        tensors[f"lm_head.{layer}.linear.bias"] = matrix(exit_dim)
    if exit_dim != 2 * hidden:
        tensors |= {"input_proj.weight": matrix(exit_dim, 2 * hidden)}
        tensors |= {"input_proj.bias": matrix(exit_dim)}
    if rnn:
        tensors |= {"rnn_u.weight": matrix(hidden, hidden), "rnn_u.bias": matrix(hidden)}
        tensors |= {"rnn_w.weight": matrix(hidden, hidden)}
    if token_map:
        tensors["token_map"] = torch.tensor(token_map, dtype=torch.int32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    facts = {"vocab_size": vocab, "hidden_size": hidden, "exit_dim": exit_dim,
             "num_draft_layers": layers, "rnn": rnn,
             **({"recurrence": recurrence} if recurrence else {})}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(facts))
    return tensors


def make_eagle(
    folder: Path,
    *,
    seed: int,
    bias: bool = True,
    pickled: bool = False,
    tensors: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Return a random EAGLE drafter for `make_llama` in its authors' names, written into `folder`.

    `changes` are keys of its config; `tensors` are written in addition to its own.
    """
    import torch
    from safetensors.torch import save_file

    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "vocab_size": 320, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "hidden_act": "silu", "bias": bias, **changes,
    }  # fmt: skip
    torch.manual_seed(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (config["vocab_size"], hidden), "fc.weight": (hidden, 2 * hidden),
        "layers.0.self_attn.q_proj.weight": (hidden, hidden),
        "layers.0.self_attn.k_proj.weight": (keys, hidden),
        "layers.0.self_attn.v_proj.weight": (keys, hidden),
        "layers.0.self_attn.o_proj.weight": (hidden, hidden),
        "layers.0.mlp.gate_proj.weight": (inner, hidden),
        "layers.0.mlp.up_proj.weight": (inner, hidden),
        "layers.0.mlp.down_proj.weight": (hidden, inner),
        "layers.0.post_attention_layernorm.weight": (hidden,),
        **({"fc.bias": (hidden,)} if bias else {}),
    }  # fmt: skip
    found = {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()} | (tensors or {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if pickled:
        torch.save(found, folder / "pytorch_model.bin")
    else:
        save_file(found, folder / "model.safetensors")
    return found
