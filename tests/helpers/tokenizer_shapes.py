"""Tokenizers in the shapes of real models: their rules, classes and special tokens, few tokens."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from specpipe.checkpoint.sentencepiece_model import CORPUS

_SPLITS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
Make = Callable[[], Tokenizer]


@dataclass(frozen=True)
class Shape:
    """One tokenizer: how tokenizer.json is made, and the names around it."""

    make: Make
    model_type: str
    tokenizer_class: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)  # of tokenizer_config.json

    def write(self, folder: Path) -> Path:
        """Write tokenizer.json, tokenizer_config.json and config.json."""
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = self.make()
        tokenizer.save(str(folder / "tokenizer.json"))
        named = {"tokenizer_class": self.tokenizer_class} if self.tokenizer_class else {}
        write_json(folder / "tokenizer_config.json", {**named, **self.settings})
        write_json(
            folder / "config.json",
            {"model_type": self.model_type, "vocab_size": 2000, "eos_token_id": 1},
        )
        return folder


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write JSON in UTF-8, as the hub has it."""
    file.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


@cache
def _byte_level() -> tuple[dict[str, int], list[Any]]:
    """Return vocabulary and merges of a byte-level BPE that was trained on the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|pad|>", "<|endoftext|>"],
    )
    tokenizer.train_from_iterator([*CORPUS, "12 123 1234 12345 99 100 2024 "] * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@cache
def _metaspace() -> tuple[dict[str, int], list[Any]]:
    """Return vocabulary and merges of a BPE over characters, with a token for every byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
    )
    texts = [text for text in CORPUS if text.isascii() and "\n" not in text]
    tokenizer.train_from_iterator(texts * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


@cache
def _pieces() -> list[tuple[str, float]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    trainer = trainers.UnigramTrainer(
        vocab_size=400, show_progress=False, special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
    )  # fmt: skip
    tokenizer.train_from_iterator(list(CORPUS) * 3, trainer)
    return [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]]


def byte_level(
    *before: Any, special: tuple[str, ...] = (), bos: str | None = None, nfc: bool = False,
    regex: bool = False, prefix: bool = False,
) -> Make:  # fmt: skip
    """Return how a byte-level BPE is made, with these pre-tokenizers before the bytes."""

    def make() -> Tokenizer:
        vocabulary, merges = _byte_level()
        tokenizer = Tokenizer(models.BPE(vocabulary, merges))
        last = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, last]) if before else last
        tokenizer.normalizer = normalizers.NFC() if nfc else None
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        names = ["<|pad|>", "<|endoftext|>", *special]
        tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
        return with_begin(tokenizer, bos) if bos else tokenizer

    return make


def with_begin(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    """Let a tokenizer begin every text with a token."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", "$B"],
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )  # fmt: skip
    return tokenizer


def split(name: str) -> Any:
    """Return the pre-tokenizer of a family's regular expression."""
    return pre_tokenizers.Split(Regex(_SPLITS[name]), "isolated")


def llama2(*, legacy: bool = True, prefix: bool = True, bos: str | None = "<s>",
           added: tuple[AddedToken, ...] = (), gemma: bool = False) -> Make:  # fmt: skip
    """Return how a tokenizer that sentencepiece trained looks as tokenizer.json."""

    def make() -> Tokenizer:
        vocabulary, merges = _metaspace()
        tokenizer = Tokenizer(
            models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        )
        if legacy:
            steps = [normalizers.Prepend("▁")] if prefix else []
            tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
                "▁", "first" if prefix else "never", split=False
            )
        if gemma:
            tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        strip = [decoders.Strip(" ", 1, 0)] if prefix else []
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        names = ("<unk>", "<s>", "</s>")
        tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
        tokenizer.add_tokens(list(added))
        return with_begin(tokenizer, bos) if bos else tokenizer

    return make


def unigram() -> Tokenizer:
    """Return a unigram tokenizer of sentencepiece."""
    tokenizer = Tokenizer(models.Unigram(_pieces(), 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    tokenizer.decoder = decoders.Metaspace("▁", "always")
    names = ("<unk>", "<s>", "</s>")
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    return tokenizer


_DIGITS = pre_tokenizers.Digits(individual_digits=True)
_CHAT = ("<|im_start|>", "<|im_end|>")
_HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_TURNS = ("<|user|>", "<|assistant|>", "<|end|>")
_FIRST, _BYTES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, {
    "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"
}  # fmt: skip
_CODE = {
    **_FIRST,
    "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
}
_END = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
_PHI3 = tuple(AddedToken(name, rstrip=True, special=True, normalized=False) for name in _TURNS)
_GEMMA = tuple(AddedToken(name, special=True, normalized=False)
               for name in ("<start_of_turn>", "<end_of_turn>"))  # fmt: skip
_FALCON = (
    pre_tokenizers.Punctuation("contiguous"),
    pre_tokenizers.ByteLevel(add_prefix_space=False),
    pre_tokenizers.Digits(individual_digits=False),
    pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
)
_DEEPSEEK = (
    pre_tokenizers.Split(Regex("[\r\n]"), "isolated"),
    pre_tokenizers.Split(Regex("\\s?\\p{L}+"), "isolated"),
    pre_tokenizers.Split(Regex("\\s?\\p{P}+"), "isolated"),
    pre_tokenizers.Split(Regex("[一-龥ࠀ-一가-퟿]+"), "isolated"),
    _DIGITS,
)
LLAMA3 = byte_level(split("llama3"), special=_HEADERS, bos="<|begin_of_text|>")
QWEN2 = byte_level(split("qwen2"), special=_CHAT, nfc=True)
GPT2 = byte_level(regex=True)
STARCODER = byte_level(_DIGITS, regex=True)
DEEPSEEK = byte_level(*_DEEPSEEK, special=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
                      bos="<｜begin▁of▁sentence｜>")  # fmt: skip
_DEEPSEEKS = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
_FAST = "PreTrainedTokenizerFast"
_HEADER = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}

SHAPES: dict[str, Shape] = {
    # as sentencepiece made them
    "Llama 2": Shape(llama2(), "llama", "LlamaTokenizer", _FIRST),
    "Llama 2, fast": Shape(llama2(), "llama", "LlamaTokenizerFast", _FIRST),
    "Llama 2, add_bos_token": Shape(
        llama2(), "llama", "LlamaTokenizer",
        {**_FIRST, "add_bos_token": True, "add_eos_token": False}),
    "Llama 2, legacy": Shape(
        llama2(), "llama", "LlamaTokenizer", {**_FIRST, "legacy": True}),
    "Llama 2, not legacy": Shape(
        llama2(legacy=False), "llama", "LlamaTokenizer", {**_FIRST, "legacy": False}),
    "Llama 2, no class": Shape(llama2(), "llama", None, _FIRST),
    "Mistral v0.1": Shape(llama2(), "mistral", "LlamaTokenizer", _FIRST),
    "Mistral v0.3": Shape(llama2(legacy=False), "mistral", "LlamaTokenizer", _FIRST),
    "Mixtral": Shape(llama2(), "mixtral", "LlamaTokenizer", {**_FIRST, "legacy": True}),
    "Phi-3": Shape(
        llama2(added=_PHI3, bos=None), "phi3", "LlamaTokenizer",
        {**_FIRST, "eos_token": "<|end|>", "add_bos_token": False, "legacy": False}),
    "InternLM2": Shape(llama2(), "internlm2", "InternLM2Tokenizer", _CODE),
    "Gemma": Shape(
        llama2(prefix=False, added=_GEMMA), "gemma", "GemmaTokenizer",
        {**_FIRST, "add_bos_token": True}),
    "Gemma 2": Shape(
        llama2(prefix=False, added=_GEMMA, gemma=True), "gemma2", "GemmaTokenizer",
        {**_FIRST, "add_bos_token": True}),
    "Unigram": Shape(lambda: unigram(), "llama", _FAST, _FIRST),
    "Yi": Shape(
        llama2(prefix=False, bos=None), "llama", "LlamaTokenizer",
        {**_FIRST, "add_bos_token": False, "add_prefix_space": False}),
    # byte-level with a split of their own
    "Llama 3": Shape(LLAMA3, "llama", _FAST, _HEADER),
    "Llama 3, no class": Shape(LLAMA3, "llama", None, _HEADER),
    "Llama 3, of a llama class": Shape(LLAMA3, "llama", "LlamaTokenizerFast", _HEADER),
    "Qwen2": Shape(QWEN2, "qwen2", "Qwen2Tokenizer", {**_END, "add_prefix_space": False}),
    "Qwen2, fast": Shape(QWEN2, "qwen2", "Qwen2TokenizerFast", _END),
    "Qwen2, generic class": Shape(QWEN2, "qwen2", _FAST, _END),
    "Qwen2 of a distilled model": Shape(LLAMA3, "qwen2", "LlamaTokenizerFast", _HEADER),
    "Qwen2 that is not normalised": Shape(
        byte_level(split("qwen2")), "qwen2", "Qwen2Tokenizer", _END),
    "Qwen2 with threes of digits": Shape(LLAMA3, "qwen2", "Qwen2Tokenizer", _HEADER),
    "Qwen2-MoE": Shape(QWEN2, "qwen2_moe", "Qwen2Tokenizer", _END),
    "Qwen3": Shape(QWEN2, "qwen3", "Qwen2Tokenizer", {**_END, "add_bos_token": False}),
    "GPT-2": Shape(GPT2, "gpt2", "GPT2Tokenizer", _BYTES),
    "GPT-2, no class": Shape(GPT2, "gpt2", None, _BYTES),
    "GPT-2 class on llama": Shape(STARCODER, "llama", "GPT2Tokenizer", _BYTES),
    "GPT-2 class on llama, split": Shape(LLAMA3, "llama", "GPT2Tokenizer", _HEADER),
    "GPT-NeoX": Shape(
        byte_level(regex=True, nfc=True), "gpt_neox", "GPTNeoXTokenizer", _BYTES),
    "GPT-NeoX, digits": Shape(STARCODER, "gpt_neox", "GPTNeoXTokenizer", _BYTES),
    "Phi": Shape(GPT2, "phi", "CodeGenTokenizer", _BYTES),
    "Phi with a split": Shape(
        byte_level(split("llama3")), "phi", "CodeGenTokenizer", _BYTES),
    "Phi-4": Shape(byte_level(split("llama3"), special=_CHAT), "phi3", "GPT2Tokenizer", _BYTES),
    "StarCoder2": Shape(STARCODER, "starcoder2", "GPT2Tokenizer", _BYTES),
    "Falcon": Shape(byte_level(*_FALCON, regex=True), "falcon", _FAST, _END),
    "DeepSeek": Shape(
        DEEPSEEK, "llama", "LlamaTokenizerFast", {**_DEEPSEEKS, "add_bos_token": True}),
    "SmolLM2": Shape(byte_level(_DIGITS, special=_CHAT, regex=True), "llama", "GPT2Tokenizer",
                     {**_BYTES, "eos_token": "<|im_end|>"}),
    "Granite": Shape(STARCODER, "granite", "GPT2Tokenizer", _BYTES),
    "Command-R": Shape(
        byte_level(_DIGITS, regex=True, nfc=True, bos="<|endoftext|>"), "cohere",
        "CohereTokenizerFast", {**_BYTES, "add_bos_token": True}),
    "OLMo 2": Shape(byte_level(split("llama3")), "olmo2", "GPT2Tokenizer", _BYTES),
    "with a space before the text": Shape(
        byte_level(regex=True, prefix=True), "llama", _FAST, {**_END, "add_prefix_space": True}),
}  # fmt: skip

# transformers 5 replaces the file's rules by those of a class; for InternLM2 and Yi, transformers 4
# wants code or a tokenizer.model that comes with the model. The generic class is their judge.
OTHER_CLASS = frozenset({
    "Llama 2", "Llama 2, fast", "Llama 2, add_bos_token", "Llama 2, legacy", "InternLM2", "Yi",
    "Qwen2 of a distilled model", "Qwen2 that is not normalised", "Qwen2 with threes of digits",
    "GPT-2 class on llama", "GPT-2 class on llama, split", "GPT-NeoX, digits", "Phi with a split",
    "StarCoder2", "SmolLM2",
})  # fmt: skip
