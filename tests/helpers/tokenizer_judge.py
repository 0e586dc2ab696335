"""What a repository makes of a folder's tokenizer, and what transformers makes of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from specpipe.checkpoint.plain_files import read_json
from specpipe.checkpoint.source import Source
from specpipe.checkpoint.tokenizer import check_tokenizer, write_tokenizer
from specpipe.runtime.tokens import TextTokenizer, load_tokenizer
from tests.helpers.trtllm_build import LLAMA_8B


def source_of(folder: Path) -> Source:
    return Source(folder, (), read_json(folder / "config.json"), {})


def served(folder: Path, out: Path, rows: int = 2000) -> TextTokenizer:
    """Return the tokenizer of a repository that is made from a folder."""
    write_tokenizer(source_of(folder), replace(LLAMA_8B, vocab_size=rows), out)
    return load_tokenizer(out)


def judge(folder: Path, *, generic: bool = False) -> Any:
    """Return the tokenizer of transformers; the generic class takes the rules from the file."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind = PreTrainedTokenizerFast if generic else AutoTokenizer
    return kind.from_pretrained(folder, local_files_only=True)


def rejections(folder: Path, rows: int = 2000) -> list[str]:
    """Return what `plan` would print."""
    return [str(r) for r in check_tokenizer(source_of(folder), replace(LLAMA_8B, vocab_size=rows))]
