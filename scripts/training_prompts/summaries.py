"""Prompts that bring a text along: summaries above all, and other work on it."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

from training_prompts import brown

SHORTEST, LONGEST = 250, 1100  # characters of a text
WISHES = (
    "Summarise this text in one or two sentences",
    "Summarise the following text",
    "Give a summary of this passage in your own words",
    "Write a short summary for someone who has no time to read this",
    "Rewrite this in simpler words",
    "Continue this text in the same style",
    "What is the following text about",
    "Make a list of the main points",
    "Write three questions that this text answers",
    "Rewrite the text as a short dialogue",
    "Give the text a title and explain your choice",
)


def draws(corpus: Path | None) -> Callable[[random.Random], str]:
    """Return what draws a prompt: texts are of the corpus, and of the topics of Python's help."""
    texts = [*_help(), *(brown.passages(corpus, SHORTEST, LONGEST) if corpus else [])]

    def draw(rng: random.Random) -> str:
        return f"{rng.choice(WISHES)}:\n\n{rng.choice(texts)}"

    return draw


def _help() -> list[str]:
    texts = (re.sub(r"\s+", " ", p) for _, t in sorted(topics.items()) for p in t.split("\n\n"))
    return [text[:LONGEST] for text in texts if len(text) > SHORTEST]
