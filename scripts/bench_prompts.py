"""The prompts of scripts/bench-batching."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from specpipe.bench.prompts import spaced
from specpipe.core.prompts import read_prompts

PROMPTS = Path("~/.cache/specpipe/prompts").expanduser()
SETS = ("mt_bench.jsonl", "humaneval.jsonl")


def mixed(count: int) -> list[str]:
    """Return `count` prompts, evenly spaced in the sets, which take turns."""
    each = -(-count // len(SETS))
    chosen = [spaced(read_prompts(PROMPTS / file), each) for file in SETS]
    return list(chain.from_iterable(zip(*chosen, strict=True)))[:count]


def long_prompts(tokenizer: Any, length: int, count: int) -> list[str]:
    """Return prompts of about `length` tokens, each of different prompts one after the other."""
    texts, around = mixed(64), len(encode(tokenizer, template(tokenizer, [""])))
    found = []
    for number in range(count):
        joined = "\n\n".join(texts[number * 7 % len(texts) :] + texts)
        user = tokenizer.decode(encode(tokenizer, joined)[: length - around])
        found.append(template(tokenizer, [user]))
    return found


def template(tokenizer: Any, messages: Sequence[str]) -> str:
    """Return the prompt for the next answer; user and assistant take turns, the user begins."""
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(messages)]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def lengths(tokenizer: Any, texts: Sequence[str]) -> str:
    """Return the range of the lengths of prompts."""
    counts = [len(encode(tokenizer, text)) for text in texts]
    return f"{min(counts)} to {max(counts)}"


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a prompt that is in the chat template."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of an answer."""
    return str(tokenizer.decode(ids, skip_special_tokens=True))
