"""Records as documents of a target: what is learned, what is cut, what is left out and counted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specpipe.core.errors import ConfigError
from specpipe.train.corpus.account import Account
from specpipe.train.corpus.documents import BEYOND, chat_documents, read_documents
from specpipe.train.corpus.prompts import prompt_tokens, read_file_of_prompts
from specpipe.train.corpus.shapes import NO_ANSWER, Chat
from specpipe.train.target import Target
from specpipe.train.text import Document
from tests.helpers.models import CHATS, make_tokenizer

# Reasoning of the last answer only, as in the template of Qwen3.
REASONING = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and loop.last %}(thought){% endif %}"
    "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOOLS = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{% for m in messages %}"
    "<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}"
    "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def read(path: Path, tokenizer: Any, length: int = 512) -> tuple[list[Document], Account]:
    account = Account("documents")
    return read_documents(path, tokenizer, length, account), account


def learned(document: Document, tokenizer: Any) -> str:
    return str(tokenizer.decode(document.tokens[document.learned]))


def test_of_a_chat_only_what_the_assistant_says_is_learned(target: Target, chats: Path) -> None:
    documents, account = read(chats, target.tokenizer)
    assert len(documents) == len(CHATS) == account.read and not account.sentences()
    for document, (question, answer) in zip(documents, CHATS, strict=True):
        assert learned(document, target.tokenizer) == f"{answer}<|end|>"
        rest = target.tokenizer.decode(document.tokens[~document.learned])
        assert rest == f"<|user|>{question}<|end|><|assistant|>"


def chat(*turns: tuple[str, str], **more: Any) -> Chat:
    return Chat(tuple({"role": role, "content": text} for role, text in turns), **more)


TWO = (("user", "a"), ("assistant", "The fox"), ("user", "b"), ("assistant", "The dog"))


def test_every_turn_of_the_assistant_is_learned(target: Target) -> None:
    (document,) = chat_documents(chat(*TWO), target.tokenizer)
    assert learned(document, target.tokenizer) == "The fox<|end|>The dog<|end|>"


def test_where_a_template_rewrites_earlier_turns_each_turn_is_a_document() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = REASONING
    documents = chat_documents(chat(*TWO), tokenizer)
    assert [learned(d, tokenizer) for d in documents] == [
        "(thought)The fox<|end|>",
        "(thought)The dog<|end|>",
    ]
    context = tokenizer.decode(documents[1].tokens[~documents[1].learned])
    assert context == "<|user|>a<|end|><|assistant|>The fox<|end|><|user|>b<|end|><|assistant|>"


def test_a_call_of_a_tool_is_learned_and_its_result_is_not() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TOOLS
    call = {"function": {"name": "tide", "arguments": {"port": "Oslo"}}}
    messages = (
        {"role": "user", "content": "When?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "At six."},
        {"role": "assistant", "content": "Six."},
    )
    (document,) = chat_documents(Chat(messages, ({"function": {"name": "tide"}},)), tokenizer)
    assert learned(document, tokenizer) == (
        '{"name": "tide", "arguments": {"port": "Oslo"}}<|end|>Six.<|end|>'
    )
    assert str(tokenizer.decode(document.tokens)).startswith("[tide]<|user|>When?")


def test_a_message_of_weight_0_is_only_context(target: Target) -> None:
    """OpenAI's format of fine-tuning marks answers that are not to be learned so."""
    first, second, *rest = chat(*TWO).messages
    (document,) = chat_documents(Chat((first, {**second, "weight": 0}, *rest)), target.tokenizer)
    assert learned(document, target.tokenizer) == "The dog<|end|>"


def test_a_plain_text_is_cut_and_learned_whole(target: Target, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    documents, account = read(file, target.tokenizer, 32)
    assert {len(d) for d in documents[:-1]} == {32} and all(d.learned.all() for d in documents)
    joined = np.concatenate([d.tokens for d in documents])
    assert target.tokenizer.decode(joined) == file.read_text() and not account.cut


def write_lines(file: Path, *values: Any) -> Path:
    file.write_text("".join(json.dumps(value) + "\n" for value in values))
    return file


def turn(question: str, answer: str | None) -> dict[str, Any]:
    answered = [] if answer is None else [{"role": "assistant", "content": answer}]
    return {"messages": [{"role": "user", "content": question}, *answered]}


def test_what_is_cut_or_left_out_is_counted_with_its_reason(target: Target, tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "a.jsonl",
        turn("Who?", "The fox."),
        turn("Who?", "The fox jumps over the lazy dog, and over the box. " * 9),
        turn("The lazy dog jumps over the fox. " * 30, "Yes."),
        turn("And?", None),
        {"label": 3},
    )
    documents, account = read(file, target.tokenizer, 64)
    assert [len(d) <= 64 for d in documents] == [True, True]
    assert account.facts() == {
        "documents cut": 1,
        f"documents left out: {BEYOND}": 1,
        f"documents left out: {NO_ANSWER}": 1,
        "documents left out: no known keys: messages, conversations, instruction, prompt or "
        "text": 1,
    }
    cut, warning = account.sentences()
    assert cut == "1 of 5 documents were cut at train.sequence_length"
    assert warning.startswith("warning: 3 of 5 documents were left out: ")
    assert f"1 for: {NO_ANSWER} (first: {file}:4)" in warning


def test_up_to_a_tenth_left_out_is_told_without_a_warning() -> None:
    account = Account("documents", read=20)
    for place in ("a:1", "a:2"):
        account.leave_out("no answer", place)
    assert account.sentences() == ["2 of 20 documents were left out: 2 for: no answer (first: a:1)"]
    account.leave_out("no answer", "a:3")
    assert account.sentences()[0].startswith("warning: 3 of 20")


def test_a_chat_that_the_template_refuses_is_left_out(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system, please') }}{% endif %}"
        + tokenizer.chat_template
    )
    system = {"role": "system", "content": "x"}
    good = turn("Who?", "The fox.")
    file = write_lines(tmp_path / "a.jsonl", good, {"messages": [system, *good["messages"]]})
    documents, account = read(file, tokenizer)
    assert len(documents) == 1
    assert list(account.left_out) == ["the chat template refuses it: no system, please"]


@pytest.mark.parametrize(
    ("text", "why"), [("", "no text to train on"), ('{"label": 1}', "no text .* no known keys")]
)
def test_a_file_without_text_is_refused_with_the_reasons(
    target: Target, tmp_path: Path, text: str, why: str
) -> None:
    file = tmp_path / "empty.txt"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"empty\.txt: {why}"):
        read(file, target.tokenizer)


def test_prompts_are_texts_or_what_comes_before_the_first_answer(
    target: Target, tmp_path: Path
) -> None:
    system = {"role": "system", "content": "Be brief."}
    longer = {
        "messages": [system, *turn("Who?", "I.")["messages"], *turn("And?", None)["messages"]]
    }
    file = write_lines(
        tmp_path / "a.jsonl", {"prompt": "Why?"}, turn("When?", "Now."), longer, {"text": "prose"}
    )
    account = Account("prompts")
    prompts = read_file_of_prompts(file, account)
    opening = {"messages": [system, {"role": "user", "content": "Who?"}]}
    assert prompts == ["Why?", "When?", opening]
    assert account.facts() == {"prompts left out: plain text, not a prompt": 1}
    asked = [target.tokenizer.decode(prompt_tokens(p, target.tokenizer)) for p in prompts]
    assert asked[1:] == [
        "<|user|>When?<|end|><|assistant|>",
        "<|system|>Be brief.<|end|><|user|>Who?<|end|><|assistant|>",
    ]


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Only prose.")
    with pytest.raises(ConfigError, match="plain text, not prompts"):
        read_file_of_prompts(tmp_path / "a.txt", Account("prompts"))
    file = write_lines(tmp_path / "b.jsonl", {"text": "prose"})
    with pytest.raises(ConfigError, match=r"b\.jsonl: no prompts: 1 for: plain text"):
        read_file_of_prompts(file, Account("prompts"))
