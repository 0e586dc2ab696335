"""The tokenizer of a GGUF file, which has tokens, merges and names of rules, and no tokenizer.json.

transformers makes one. What the file states in its own words, and transformers fills in from its
classes, is set here: which tokens there are, how text is split, the first space, and the tokens
around a text. Names of rules and defaults are llama.cpp's (src/llama-vocab.cpp).

Not here: which of the tokens end an answer; see `checkpoint/end_tokens.py`.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from specpipe.checkpoint.gguf.header import GgufHeader, Value, read_header
from specpipe.core.errors import Unsupported

_LLAMA3 = (
    "llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
)  # fmt: skip
_WORDS_FIRST = (*_LLAMA3, "tekken")  # a word that is a token is not merged; texts begin with BOS
_AS_GPT2 = ("gpt-2", "default", "mpt", "olmo", "jais", "phi-2")  # "default": older than the names
_DIGITS_FIRST = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_BEFORE_5 = ("llama-bpe", "llama3", "llama-v3", "qwen2")  # what transformers 4 does by architecture
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def load_gguf_tokenizer(path: Path) -> Any:
    """Return the tokenizer of a file as one of transformers, with the file's tokens and no others.

    Raises Unsupported for a rule of splitting that is not known, and what transformers raises.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    header = read_header(path)
    settle = _rule(header)
    backend = Tokenizer.from_str(_as_stated(_by_transformers(path).to_str(), header))
    settle(backend)
    _set_decoder(backend, header.facts)
    _set_ends(backend, header.facts)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=header.facts.get("tokenizer.chat_template"),
        **_special(backend, header.facts),
    )


def require_known_splitting(path: Path) -> None:
    """Raise Unsupported if a file names an unknown rule of splitting text; reads no token."""
    _rule(read_header(path))


def _by_transformers(path: Path) -> Any:
    """Return what transformers makes of a file; AutoTokenizer reads all of it three times."""
    try:
        from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
    except ImportError:  # transformers 4
        from transformers import AutoTokenizer

        made = AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True
        )
        return made.backend_tokenizer
    architecture, tokens, _ = get_gguf_tokenizer(str(path))
    return convert_gguf_tokenizer(architecture, tokens)[0]


def _rule(header: GgufHeader) -> Callable[[Any], None]:
    """Return what sets how a tokenizer splits text, for the rule that a file names.

    Raises Unsupported if nobody here knows the name.
    """
    kind, name = (header.facts.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind == "llama":
        begins = header.facts.get("tokenizer.ggml.add_space_prefix", True)
        return _marks_spaces if begins else _keeps_spaces
    name = name or "default"
    if kind != "gpt2":
        return lambda backend: None
    if name in _AS_GPT2:
        return _splits_as_gpt2
    if name in _DIGITS_FIRST:
        return _splits_digits_first
    if name == "falcon":
        return _splits_as_falcon
    if name in _known_to_transformers():
        return lambda backend: None
    raise Unsupported(
        f"{header.path}: no usable tokenizer: it splits text by the rule {name!r} "
        "(tokenizer.ggml.pre), which is not known",
        hint="give the folder that the file was made from, with its tokenizer.json",
    )


def _marks_spaces(backend: Any) -> None:
    """Put a space before every text, as Llama 2 does, and write spaces as their mark."""
    from tokenizers import normalizers

    marks = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), marks])
    backend.pre_tokenizer = None


def _keeps_spaces(backend: Any) -> None:
    """Write spaces as their mark, and put none before a text, as Gemma does."""
    from tokenizers import normalizers

    backend.normalizer, backend.pre_tokenizer = normalizers.Replace(" ", "▁"), None


def _splits_as_gpt2(backend: Any) -> None:
    from tokenizers import pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)


def _splits_digits_first(backend: Any) -> None:
    from tokenizers import pre_tokenizers

    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words])


def _splits_as_falcon(backend: Any) -> None:
    from tokenizers import Regex, pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    )


def _set_decoder(backend: Any, facts: Mapping[str, Value]) -> None:
    """Turn tokens back into text: bytes by their letters, or marks of spaces and bytes by name."""
    from tokenizers import decoders

    kind = facts.get("tokenizer.ggml.model")
    if kind == "gpt2":
        backend.decoder = decoders.ByteLevel()
    if kind == "llama":
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if facts.get("tokenizer.ggml.add_space_prefix", True):
            parts.append(decoders.Strip(" ", 1, 0))
        backend.decoder = decoders.Sequence(parts)


def _known_to_transformers() -> tuple[str, ...]:
    try:
        from transformers.integrations.gguf import gguf_tokenizer_mapping as mapping
    except ImportError:
        return _BEFORE_5
    return tuple(mapping.GGUF_PRE_TOKENIZER_SPLITS)


def _as_stated(text: str, header: GgufHeader) -> str:
    """Return a tokenizer.json without tokens that the file lacks, and with its rule of merging."""
    held = json.loads(text)
    count = header.counts.get("tokenizer.ggml.tokens", 0)
    held["added_tokens"] = [token for token in held["added_tokens"] if token["id"] < count]
    held["post_processor"] = None
    if header.facts.get("tokenizer.ggml.pre") in _WORDS_FIRST:
        held["model"]["ignore_merges"] = True
    return json.dumps(held, ensure_ascii=False)


def _set_ends(backend: Any, facts: Mapping[str, Value]) -> None:
    """Put the tokens around every text that the file asks for, or its kind by default."""
    from tokenizers import processors

    by_default = facts.get("tokenizer.ggml.model") == "llama"
    by_default |= facts.get("tokenizer.ggml.pre") in _WORDS_FIRST
    around = {"bos": by_default, "eos": False}
    ids = {
        name: facts.get(f"tokenizer.ggml.{name}_token_id")
        for name, default in around.items()
        if facts.get(f"tokenizer.ggml.add_{name}_token", default)
    }
    tokens = {n: (backend.id_to_token(i), i) for n, i in ids.items() if isinstance(i, int)}
    parts = ["$A", *(token for name, (token, _) in tokens.items() if name == "eos")]
    parts = [*(token for name, (token, _) in tokens.items() if name == "bos"), *parts]
    if tokens:
        backend.post_processor = processors.TemplateProcessing(
            single=parts, special_tokens=list(tokens.values())
        )


def _special(backend: Any, facts: Mapping[str, Value]) -> dict[str, str]:
    ids = {
        ours: facts.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in _SPECIAL.items()
    }
    tokens = {n: backend.id_to_token(i) for n, i in ids.items() if isinstance(i, int)}
    return {f"{name}_token": token for name, token in tokens.items() if token is not None}
