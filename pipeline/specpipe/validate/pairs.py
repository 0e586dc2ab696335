"""Which answers of a scenario should be equal: to plain decoding, and to the reference."""

from collections.abc import Iterator, Mapping, Sequence

from specpipe.validate.answers import Answer, good
from specpipe.validate.differences import Contrast
from specpipe.validate.trials import Arm, ExpectedAnswer


def pair(
    answers: Sequence[Answer], expected: Mapping[int, ExpectedAnswer] | None = None
) -> list[Contrast]:
    """Return the pairs: every answer with the first plain one, and with the reference's.

    The first plain answer to a prompt is that of the first load.
    """
    found = list(_with_plain(answers))
    for answer in good(answers):
        theirs = (expected or {}).get(answer.prompt)
        if theirs is not None:
            found.append(_contrast(answer, "reference", theirs.text, theirs.tokens))
    return found


def _with_plain(answers: Sequence[Answer]) -> Iterator[Contrast]:
    base: dict[tuple[tuple[int, ...], int], Answer] = {}
    for answer in sorted(good(answers), key=lambda a: a.arm != "plain"):
        key = answer.asked, answer.max_tokens
        if key in base:
            yield _contrast(answer, "plain", base[key].text, base[key].tokens)
        elif answer.arm == "plain":
            base[key] = answer


def _contrast(answer: Answer, against: Arm, text: str, tokens: tuple[int, ...]) -> Contrast:
    return Contrast(
        answer.scenario, answer.prompt, answer.arm, against, answer.asked, text, answer.text,
        tokens, answer.tokens, answer.load,
    )  # fmt: skip
