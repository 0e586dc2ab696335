"""What xgrammar is told of a tokenizer, with xgrammar itself as the judge where it is installed."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import Metaspace
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from specpipe.repository.tokenizer_info import tokenizer_info
from tests.helpers.tokenizer_shapes import SHAPES

ENDS = ["<|endoftext|>", "</s>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>"]
TEXT = "Some (text) of 12 words: naïve 東京, \U0001f600!\n\tx = {'y': 1}"


def info(tokenizer: Tokenizer, folder: Path, ends: list[int], rows: int) -> dict[str, Any]:
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {"vocab_size": rows, "end_ids": ends, "pad_id": ends[0]}
    (folder / "tokenizer_facts.json").write_text(json.dumps(facts))
    found = tokenizer_info(folder)
    assert found == tokenizer_info(folder)
    values: dict[str, Any] = json.loads(found)
    assert sorted(values) == ["encoded_vocab", "stop_token_ids", "tokenizer_str"]
    return values


def test_every_token_keeps_its_place_and_special_ones_have_no_text(tmp_path: Path) -> None:
    """Id 1 is not in use, and the model has no row for the last token."""
    words = {"a": 0, "▁b": 2, "<end>": 3, "<turn>": 4, "<think>": 5, "beyond": 6}
    made = Tokenizer(WordLevel(words, "a"))
    made.add_special_tokens([AddedToken("<end>"), AddedToken("<turn>")])
    made.add_tokens(["<think>"])
    values = info(made, tmp_path, [3, 4], 6)
    assert values["encoded_vocab"] == ["a", "", "▁b", "", "", "<think>"]
    assert values["stop_token_ids"] == [3, 4]
    assert json.loads(values["tokenizer_str"])["model"]["vocab"] == words


def test_the_mark_of_a_space_is_a_space_where_xgrammar_does_not_know_it(tmp_path: Path) -> None:
    made = Tokenizer(WordLevel({"▁b": 0, "a": 1}, "a"))
    made.decoder = Metaspace("▁", "always")
    assert info(made, tmp_path, [1], 2)["encoded_vocab"] == [" b", "a"]


@pytest.mark.parametrize("name", SHAPES)
def test_xgrammar_reads_the_tokens_as_the_text_that_they_stand_for(
    name: str, tmp_path: Path
) -> None:
    """As `GuidedDecoder` does, with a vocabulary that is padded for the engine."""
    xgrammar = pytest.importorskip("xgrammar")
    made = SHAPES[name].make()
    ends = [made.token_to_id(text) for text in ENDS if made.token_to_id(text) is not None]
    rows = made.get_vocab_size()
    values = info(made, tmp_path, ends, rows)
    given = Tokenizer.from_str(values["tokenizer_str"])
    kind = xgrammar.TokenizerInfo.from_huggingface(
        PreTrainedTokenizerFast(tokenizer_object=given), stop_token_ids=ends
    )
    known = xgrammar.TokenizerInfo(
        values["encoded_vocab"], kind.vocab_type, vocab_size=rows + 3,
        stop_token_ids=values["stop_token_ids"], add_prefix_space=kind.add_prefix_space,
    )  # fmt: skip
    ids = made.encode(TEXT, add_special_tokens=False).ids
    spelled = b"".join(known.decoded_vocab[i] for i in ids)
    assert spelled.decode().strip() == made.decode(ids).strip()
    assert known.stop_token_ids == ends and known.vocab_size == rows + 3
    special = {number for number, token in made.get_added_tokens_decoder().items() if token.special}
    assert special | {rows, rows + 1, rows + 2} <= {*known.special_token_ids, *ends}
    compiled = xgrammar.GrammarCompiler(known).compile_regex(".*")
    matcher = xgrammar.GrammarMatcher(compiled)
    mask = xgrammar.allocate_token_bitmask(1, rows + 3)
    matcher.fill_next_token_bitmask(mask)
    permitted = {i for i in range(rows + 3) if mask[0, i // 32].item() >> (i % 32) & 1}
    assert permitted & special == set(ends) & permitted == set(ends)
