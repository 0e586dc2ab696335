"""Compares the tokenizer of a repository with that of the source, as transformers reads it.

Reference and server get the same ids, so their answers agree even if the ids are wrong.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from specpipe.checkpoint.tokenizer_judge import JudgeTokenizer, open_judges
from specpipe.validate.checks import Check
from specpipe.validate.questions import Question, Questions

NAME = "the tokenizer is the source's"


def check_tokenizer(source: Path, questions: Questions, answers: Iterable[Sequence[int]]) -> Check:
    """Check that prompts have the ids, and answers the text, that transformers gives them.

    `answers` are tokens of the reference.
    """
    judges, tokens = list(open_judges(source)), list(answers)
    if not judges:
        return Check(NAME, True, f"not compared: transformers reads no tokenizer from {source}")
    found = [find_difference(judge, questions, tokens) for judge in judges]
    if None not in found:
        return Check(NAME, False, str(found[-1]))
    judge = judges[found.index(None)]
    compared = f"{len(questions.asked)} prompts and {len(tokens)} answers"
    return Check(NAME, True, f"{compared} as in transformers' {judge.name}")


def find_difference(
    judge: JudgeTokenizer, questions: Questions, answers: Iterable[Sequence[int]]
) -> str | None:
    """Describe the first difference from a reading of transformers; None if there is none."""
    for number, question in enumerate(questions.asked):
        ours_text, theirs_text = _prompts(judge, questions, question)
        if ours_text != theirs_text:
            return (
                f"prompt {number} in the chat template is {_excerpt(ours_text, theirs_text)!r}, "
                f"and {_excerpt(theirs_text, ours_text)!r} in transformers' {judge.name}"
            )
        for text in judge.parts(ours_text):
            around = judge.whole and isinstance(question.prompt, str)
            theirs, ours = judge.encode(text, around=around), list(question.tokens)
            if not judge.whole:
                ours = questions.tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
            if ours != theirs:
                return _ids_differ(judge, questions, number, ours, theirs)
    for number, answer in enumerate(answers):
        spoken = answer[:-1] if answer and answer[-1] in questions.end_ids else answer
        ours_text, theirs_text = questions.tokenizer.decode_answer(answer), judge.decode(spoken)
        if ours_text != theirs_text:
            return (
                f"answer {number} of the reference is {_excerpt(ours_text, theirs_text)!r}, and "
                f"{_excerpt(theirs_text, ours_text)!r} in transformers' {judge.name}"
            )
    return None


def _prompts(judge: JudgeTokenizer, questions: Questions, question: Question) -> tuple[str, str]:
    """Return a prompt as text, as the server renders it and as transformers does."""
    prompt = question.prompt
    if isinstance(prompt, str):
        return prompt, prompt
    ours = questions.tokenizer.chat.text(prompt)
    theirs = judge.render(prompt.messages)
    return ours, ours if theirs is None else theirs


def _ids_differ(
    judge: JudgeTokenizer, questions: Questions, number: int, ours: Sequence[int],
    theirs: Sequence[int],
) -> str:  # fmt: skip
    at = _first_difference(ours, theirs)
    tokenizer = questions.tokenizer.tokenizer
    seen = f"{ours[at]} ({tokenizer.id_to_token(ours[at])!r})" if at < len(ours) else "its end"
    right = "its end"
    if at < len(theirs):
        right = f"{theirs[at]} ({judge.reader.convert_ids_to_tokens(theirs[at])!r})"
    return f"token {at} of prompt {number} is {seen}, and {right} in transformers' {judge.name}"


def _excerpt(text: str, other: str) -> str:
    at = max(0, _first_difference(text, other) - 10)
    return text[at : at + 40]


def _first_difference(one: Sequence[object], other: Sequence[object]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
