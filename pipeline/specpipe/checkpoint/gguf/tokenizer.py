"""The tokenizer of a GGUF file, which has tokens, merges and names of rules, and no tokenizer.json.

transformers makes one. What its classes add, and no file states, is taken away again: tokens beyond
the file's, and GPT-2's rule of splitting text in place of a rule that it does not know.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specpipe.checkpoint.gguf.header import GgufHeader, Value, read_header
from specpipe.core.errors import Unsupported

# Names of rules as llama.cpp has them (src/llama-vocab.cpp, `llama_vocab::impl::load`). "default":
# files that were made before there were names.
_AS_GPT2 = ("gpt-2", "default", "mpt", "olmo", "jais", "phi-2")
_DIGITS_FIRST = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_BEFORE_5 = ("llama-bpe", "llama3", "llama-v3", "qwen2")  # what transformers 4 does by architecture
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def load_gguf_tokenizer(path: Path) -> Any:
    """Return the tokenizer of a file as one of transformers, with the file's tokens and no others.

    Raises Unsupported for a rule of splitting that is not known, and what transformers raises.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    header = read_header(path)
    splitting = _splitting(header)
    made = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    backend = Tokenizer.from_str(_without_invented(made.backend_tokenizer.to_str(), header))
    if splitting is not None:
        backend.pre_tokenizer = splitting
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=header.facts.get("tokenizer.chat_template"),
        **_special(backend, header.facts),
    )


def _splitting(header: GgufHeader) -> Any:
    """Return the pre-tokenizer that a file names; None where transformers' class has the right one.

    Raises Unsupported if nobody here knows the name.
    """
    if header.facts.get("tokenizer.ggml.model") != "gpt2":  # the others split as their class does
        return None
    name = header.facts.get("tokenizer.ggml.pre", "default")
    if name in _AS_GPT2 or name in _DIGITS_FIRST:
        return _gpt2(digits_first=name in _DIGITS_FIRST)
    if name not in _known_to_transformers():
        raise Unsupported(
            f"{header.path}: no usable tokenizer: it splits text by the rule {name!r} "
            "(tokenizer.ggml.pre), which is not known",
            hint="give the folder that the file was made from, with its tokenizer.json",
        )
    return None


def _gpt2(*, digits_first: bool) -> Any:
    from tokenizers import pre_tokenizers

    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if not digits_first:
        return words
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])


def _known_to_transformers() -> tuple[str, ...]:
    try:
        from transformers.integrations.gguf import gguf_tokenizer_mapping as mapping
    except ImportError:
        return _BEFORE_5
    return tuple(mapping.GGUF_PRE_TOKENIZER_SPLITS)


def _without_invented(text: str, header: GgufHeader) -> str:
    """Remove the added tokens of a tokenizer.json that a file does not have."""
    held = json.loads(text)
    count = header.counts.get("tokenizer.ggml.tokens", 0)
    held["added_tokens"] = [token for token in held["added_tokens"] if token["id"] < count]
    return json.dumps(held, ensure_ascii=False)


def _special(backend: Any, facts: Mapping[str, Value]) -> dict[str, str]:
    ids = {
        ours: facts.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in _SPECIAL.items()
    }
    tokens = {n: backend.id_to_token(i) for n, i in ids.items() if isinstance(i, int)}
    return {f"{name}_token": token for name, token in tokens.items() if token is not None}
