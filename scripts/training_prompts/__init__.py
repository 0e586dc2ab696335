"""The categories of training prompts, each a file of this folder and a line here."""

import random
from collections.abc import Callable
from pathlib import Path

from training_prompts import chat, code, languages, maths, summaries

# What draws one prompt of a category. `corpus`: the Brown corpus, or None.
Draw = Callable[[random.Random], str]
CATEGORIES: dict[str, Callable[[Path | None], Draw]] = {
    "chat": chat.draws,
    "code": code.draws,
    "maths": maths.draws,
    "summary": summaries.draws,
    "languages": languages.draws,
}
