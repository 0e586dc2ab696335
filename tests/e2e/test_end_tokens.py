"""A model with several end tokens in a real server: every path stops where transformers does."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specpipe.serve.client import Options, collect
from tests.helpers import raw_requests as raw
from tests.helpers.servers import Served

pytestmark = pytest.mark.e2e

PROMPT = "The quick brown fox jumps over the lazy dog. The quick brown"
LENGTH = 24


@pytest.fixture(scope="module")
def model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny model with two end tokens, of which greedy answers hold the second one."""
    folder = tmp_path_factory.mktemp("ends") / "model"
    shutil.copytree(tiny, folder)
    free = judge(folder, eos_token_id=None)
    end = next(token for i, token in enumerate(free) if i >= 4 and token not in free[:i])
    other = min(set(range(3, 200)) - set(free))
    text = json.dumps({"eos_token_id": [other, end]})
    (folder / "generation_config.json").write_text(text)
    return folder


def judge(folder: Path, **options: Any) -> list[int]:
    """Return the greedy answer of transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt").input_ids
    out = AutoModelForCausalLM.from_pretrained(folder).float().generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=LENGTH,
        do_sample=False, pad_token_id=0, **options,
    )  # fmt: skip
    tokens: list[int] = out[0, ids.shape[1] :].tolist()
    return tokens


@pytest.fixture(scope="module", params=["engine", "bls"])
def server(
    serve, model: Path, tiny_draft: Path, request: pytest.FixtureRequest
) -> Iterator[Served]:
    sections: dict[str, object] = {}
    if request.param == "bls":
        sections["speculation"] = {
            "method": "draft_model", "draft": {"model": str(tiny_draft)}, "num_draft_tokens": 3,
        }  # fmt: skip
        sections["serving"] = {"loop": "bls", "instances": 1}
    with serve(target={"model": str(model)}, **sections) as served:
        yield served


@pytest.mark.parametrize("name", ["ensemble", "tensorrt_llm_bls"])
@pytest.mark.parametrize("stream", [True, False])
def test_text_ends_before_the_end_token_which_is_counted(
    server: Served, model: Path, name: str, stream: bool
) -> None:
    from transformers import AutoTokenizer

    theirs = judge(model)
    assert 4 < len(theirs) < LENGTH
    got = raw.stream(server.url, name, {
        "text_input": PROMPT, "max_tokens": LENGTH, "stream": stream,
        "exclude_input_in_output": True, "return_num_output_tokens": True,
    })  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert raw.text(got) == tokenizer.decode(theirs[:-1], skip_special_tokens=True)
    counts = [r.as_numpy("num_output_tokens") for r in got]
    assert [int(c.reshape(-1)[0]) for c in counts if c is not None][-1] == len(theirs)


def test_min_tokens_forbids_every_end_token(server: Served, model: Path) -> None:
    theirs = judge(model, min_new_tokens=12)
    got = raw.stream(server.url, "ensemble", {
        "text_input": PROMPT, "max_tokens": LENGTH, "stream": True, "min_tokens": 12,
        "exclude_input_in_output": True,
    })  # fmt: skip
    ended = len(theirs) < LENGTH
    assert raw.text(got) == server.tokenizer.decode(theirs[:-1] if ended else theirs)


def test_preprocessing_hands_the_other_end_tokens_over_as_stop_words(server: Served) -> None:
    first, second = server.tokenizer.end_ids
    values = {"QUERY": PROMPT, "REQUEST_OUTPUT_LEN": 8}
    found = raw.unary(server.url, "preprocessing", values)
    assert raw.value(found, "OUT_END_ID") == first
    assert found.as_numpy("STOP_WORDS_IDS").tolist() == [[[second], [1]]]
    found = raw.unary(server.url, "preprocessing", {**values, "END_ID": 5})
    assert raw.value(found, "OUT_END_ID") == 5 and found.as_numpy("STOP_WORDS_IDS").size == 0


def test_postprocessing_gives_an_end_token_no_text(server: Served, model: Path) -> None:
    theirs = np.array([[judge(model)]], np.int32)
    found = raw.unary(server.url, "postprocessing", {
        "TOKENS_BATCH": theirs, "SEQUENCE_LENGTH": np.array([[theirs.shape[2]]], np.int32),
    })  # fmt: skip
    text = found.as_numpy("OUTPUT")[0].decode()
    assert text == server.tokenizer.decode(theirs[0, 0, :-1].tolist())


def test_the_client_for_tokens_stops_at_all_of_them(server: Served, model: Path) -> None:
    if server.config.serving.loop == "bls":
        pytest.skip("the engines of the BLS loop do not stream")
    prompt = server.tokenizer.encode(PROMPT, 100)
    options = Options(max_tokens=LENGTH, end_ids=server.tokenizer.end_ids)
    assert list(collect(server.client.stream_tokens(prompt, options)).tokens) == judge(model)
