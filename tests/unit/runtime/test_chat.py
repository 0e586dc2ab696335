"""Tokens of conversations: those of transformers, and no control token out of a user's text."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from specpipe.core.conversation import ChatTemplate, Conversation, load_conversation
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.runtime.chat import ChatEncoder
from specpipe.runtime.tokens import TextTokenizer
from tests.helpers.chat_templates import CONVERSATIONS, PLAIN, THINKING, by_transformers
from tests.helpers.tokenizer_judge import judge, served
from tests.helpers.tokenizer_shapes import SHAPES, Shape, write_json

KINDS = (
    "Llama 2", "Llama 2, not legacy", "Mistral v0.3", "Phi-3", "InternLM2", "Gemma", "Gemma 2",
    "Unigram", "Yi", "Llama 3", "Qwen2", "Qwen3", "GPT-2", "GPT-NeoX", "Phi-4", "StarCoder2",
    "Falcon", "DeepSeek", "SmolLM2", "Command-R", "with a space before the text",
)  # fmt: skip
CORPUS = "def f(x):\n    return 12345 + x  # über 東京 🦊\n\n\n  <b>a</b> | b\t"


def template_of(shape: Shape) -> str:
    """Return a template that writes two of a tokenizer's special tokens."""
    names = [t.content for t in shape.make().get_added_tokens_decoder().values() if t.special]
    begin, end = (names[-2:] * 2)[:2]
    return (
        "{{ bos_token }}{% for m in messages %}" + begin + "{{ m.role }}\n{{ m.content }}" + end
        + "\n{% endfor %}{% if add_generation_prompt %}" + begin + "assistant\n{% endif %}"
    )  # fmt: skip


def folder_of(shape: Shape, folder: Path) -> Path:
    shape.write(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    write_json(folder / "tokenizer_config.json", {**settings, "chat_template": template_of(shape)})
    return folder


def control_count(ours: TextTokenizer, ids: list[int]) -> int:
    """Count control tokens; unknown characters are `<unk>` in some tokenizers."""
    names = set(ours.chat.control_tokens) - {"<unk>"}
    control = {ours.tokenizer.token_to_id(token) for token in names}
    return sum(token in control for token in ids)


@pytest.mark.parametrize("name", KINDS)
def test_tokens_are_those_of_transformers_and_hostile_text_adds_no_control_token(
    name: str, tmp_path: Path
) -> None:
    folder = folder_of(SHAPES[name], tmp_path / "model")
    ours, theirs = served(folder, tmp_path / "out"), judge(folder, generic=True)
    for case in (*CONVERSATIONS.values(), {"messages": [{"role": "user", "content": CORPUS}]}):
        expected = by_transformers(
            theirs, theirs.chat_template, case, tokenize=True, return_dict=False
        )
        assert ours.encode_chat(load_conversation(json.dumps(case)), 9999) == list(expected)
    for hostile in (" x ".join(ours.chat.control_tokens), "".join(ours.chat.control_tokens)):
        ids = ours.encode_chat(Conversation.of(f"a {hostile} b", hostile), 9999)
        clean = ours.encode_chat(Conversation.of("a", "b"), 9999)
        assert control_count(ours, ids) == control_count(ours, clean) > 0
        kept = ours.tokenizer.decode(ids, skip_special_tokens=False)
        # A tokenizer without bytes has no ids for some characters; spaces may be normalised.
        if name != "Unigram":
            assert hostile.replace(" ", "") in kept.replace(" ", "").replace("Ġ", "")


def added_qwen(*tokens: str) -> Tokenizer:
    tokenizer = SHAPES["Qwen2"].make()
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    return tokenizer


@pytest.fixture(scope="module")
def thinking() -> ChatEncoder:
    """Return a model whose thoughts are between added tokens that are not special."""
    tokenizer = added_qwen("<think>", "</think>", "<table>", "<|joined|>")
    return ChatEncoder(tokenizer, ChatTemplate({"default": THINKING}))


def test_control_tokens_are_the_special_ones_and_those_of_the_template(
    thinking: ChatEncoder,
) -> None:
    assert {"<|im_start|>", "<|im_end|>", "<think>", "</think>"} < set(thinking.control_tokens)
    assert "<table>" not in thinking.control_tokens and "<|joined|>" not in thinking.control_tokens
    joined = "{% for m in messages %}{{ '<|' + (m.role and 'joined') + '|>' }}{% endfor %}"
    assert (
        "<|joined|>"
        in ChatEncoder(thinking.tokenizer, ChatTemplate({"default": joined})).control_tokens
    )


def test_what_the_template_searches_in_answers_stays_a_token_there(thinking: ChatEncoder) -> None:
    answer = "<think>\nx\n</think>\n\nDone.<|im_end|>"
    turns = Conversation.of("a").then("assistant", answer).then("user", "b</think>c")
    ids = thinking.encode(turns)
    text = thinking.tokenizer.decode(ids, skip_special_tokens=False)
    assert "<|im_start|>assistant\nDone.<|im_end|><|im_end|>\n" in text and "b</think>c" in text
    token = thinking.tokenizer.token_to_id
    assert ids.count(token("</think>")) == 0 and ids.count(token("<|im_end|>")) == 3


def test_no_mark_is_left_in_a_prompt_that_writes_its_texts_in_other_ways() -> None:
    template = (
        "{{ messages | tojson(ensure_ascii=true) }}{{ messages[0] }}"
        "{% set text = messages[0].content %}{{ text | upper }}"
        "{{ text.split('<|im_end|>') | join }}<|im_end|>"
    )
    encoder = ChatEncoder(added_qwen(), ChatTemplate({"default": template}))
    text = "<|im_<|im_end|>end|> 𒀀 \\ud808\\udc00 x"
    ids = encoder.encode(Conversation.of(text))
    assert ids.count(encoder.tokenizer.token_to_id("<|im_end|>")) == 1
    plain = encoder.text(Conversation.of(text))
    assert encoder.tokenizer.decode(ids, skip_special_tokens=False) == plain


def test_a_text_with_every_mark_is_refused() -> None:
    encoder = ChatEncoder(added_qwen(), ChatTemplate({"default": PLAIN}))
    every = "".join(map(chr, [*range(0x12000, 0x1236F), *range(0x13000, 0x1342F)]))
    assert encoder.encode(Conversation.of(every))
    with pytest.raises(ConfigError, match="every cuneiform sign"):
        encoder.encode(Conversation.of(every + "<|im_end|>"))


def test_a_role_that_would_complete_a_control_token_is_refused(thinking: ChatEncoder) -> None:
    with pytest.raises(ConfigError, match="the role 'im_end' is a part of a control token"):
        thinking.encode(Conversation(({"role": "im_end", "content": "x"},)))
    assert thinking.encode(Conversation(({"role": "observation", "content": "x"},)))


def test_a_control_token_of_the_ordinary_vocabulary_is_spelled_by_its_characters() -> None:
    tokenizer = SHAPES["Unigram"].make()
    encoder = ChatEncoder(tokenizer, ChatTemplate({"default": PLAIN}, {"eos_token": "</s>"}))
    ids = encoder.encode(Conversation.of("x</s>y"))
    assert ids.count(tokenizer.token_to_id("</s>")) == 1


def test_a_prompt_is_bounded_and_a_model_without_a_template_refuses(
    tokenizer: TextTokenizer,
) -> None:
    ids = tokenizer.encode_prompt(Conversation.of("fox"), 10)
    assert ids == tokenizer.encode_prompt("<|user|>fox<|end|><|assistant|>", 10)
    with pytest.raises(ConfigError, match=r"at most 3 .max_input_len"):
        tokenizer.encode_chat(Conversation.of("The quick brown fox"), 3)
    with pytest.raises(ConfigError, match="bytes: more than 3 tokens"):
        tokenizer.encode_chat(Conversation.of("x" * 100_000), 3)
    bare: Any = TextTokenizer(tokenizer.tokenizer, 300, (0,), 0, 10)
    with pytest.raises(Unsupported, match="the model has no chat template"):
        bare.encode_chat(Conversation.of("x"), 10)
