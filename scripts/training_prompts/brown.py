"""The Brown corpus without the tags of its words: passages and nouns."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LEAST_COUNT = 8  # of a noun in the corpus


def paragraphs(corpus: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of a file and one of its lines, which is about a sentence."""
    for file in files(corpus):
        for line in file.read_text(encoding="latin-1").splitlines():
            words = [word.rsplit("/", 1)[0] for word in line.split()]
            text = re.sub(r" ([.,;:?!)])", r"\1", " ".join(words)).replace("``", '"')
            text = text.replace(" ''", '"').replace('" ', '"', 1)
            if text:
                yield file.name, text


def passages(corpus: Path, shortest: int, longest: int) -> list[str]:
    """Return stretches of whole sentences, each of `shortest` to `longest` characters."""
    found, held, source = list[str](), list[str](), ""
    for name, text in paragraphs(corpus):
        size = sum(map(len, held)) + len(held)
        if name != source or size + len(text) > longest:
            found += [" ".join(held)] if size >= shortest else []
            held, source = [], name
        held.append(text)
    return [*found, " ".join(held)] if sum(map(len, held)) >= shortest else found


def plurals(corpus: Path) -> list[str]:
    """Return the plural nouns that the corpus has at least `LEAST_COUNT` times, sorted."""
    counts = Counter(
        word[:-4].lower()
        for file in files(corpus)
        for word in file.read_text(encoding="latin-1").split()
        if word.endswith("/nns")
    )
    often = (word for word, count in counts.items() if count >= LEAST_COUNT)
    return sorted(word for word in often if word.isalpha() and len(word) > 3)


def files(corpus: Path) -> list[Path]:
    """Return the files of a folder that have the corpus's names, sorted."""
    return sorted(p for p in corpus.rglob("c[a-r][0-9][0-9]") if p.is_file())
