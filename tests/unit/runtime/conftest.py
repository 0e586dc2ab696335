"""Fixtures of the runtime's tests: the tiny tokenizer, as it is packaged."""

import json

import pytest

from specpipe.runtime.tokens import TextTokenizer, load_tokenizer
from tests.helpers.models import TEMPLATE, make_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """Return the tokenizer of the tiny models, with one end token and a chat template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = make_tokenizer()
    made.backend_tokenizer.save(str(folder / "tokenizer.json"))
    facts = {
        "vocab_size": len(made),
        "end_ids": [0],
        "pad_id": 0,
        "chat": {"templates": {"default": TEMPLATE}, "special_tokens": {"eos_token": "<|end|>"}},
    }
    (folder / "tokenizer_facts.json").write_text(json.dumps(facts))
    return load_tokenizer(folder)
