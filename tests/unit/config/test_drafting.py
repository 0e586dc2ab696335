"""The options with which TensorRT-LLM's LLM API drafts: what its own records would refuse."""

from collections.abc import Callable
from pathlib import Path

import pytest

from specpipe.config.run_config import read_config
from specpipe.core.errors import ConfigError

ENGINE = "engine: {backend: llmapi, gpu: H100-SXM, dtype: bfloat16, tensorrt_llm: 1.4.0rc4}\n"
EAGLE3 = "method: eagle3, draft: {model: d}, num_draft_tokens: 6"


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], object]:
    def reading(speculation: str) -> object:
        file = tmp_path / "run.yaml"
        file.write_text(f"name: x\ntarget: {{model: m}}\n{ENGINE}speculation: {{{speculation}}}\n")
        return read_config(file).speculation

    return reading


@pytest.mark.parametrize(
    ("speculation", "words"),
    [
        ("draft_len_schedule: {1: 6, 8: 1}, max_concurrency: 3", "exclude each other"),
        ("draft_len_schedule: {1: 3}", "must begin with the 6 draft tokens"),
        ("draft_len_schedule: {1: 6, 8: 7}", "no more of them later"),
        ("draft_len_schedule: {8: 6, 1: 2}", "in rising order"),
        ("draft_len_schedule: {0: 6}", "from 1 up"),
        ("draft_len_schedule: {many: 6}", "from 1 up"),
        ("sa_config: {}, use_rejection_sampling: true", "exclude each other"),
        ("sa_config: {threshold: 0}", "must be at least 1"),
    ],
)
def test_what_upstream_refuses_is_refused_with_its_line(
    read: Callable[[str], object], speculation: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=r"run.yaml:4(.|\n)*" + words.replace("'", ".")):
        read(f"{EAGLE3}, {speculation}")


@pytest.mark.parametrize(
    "speculation",
    [
        f"{EAGLE3}, tree: dynamic, draft_len_per_beam: 3, num_beams: 2",
        f"{EAGLE3}, draft_len_schedule: {{1: 6, 8: 2, 64: 0}}",
        f"{EAGLE3}, sa_config: {{}}",
        "method: pard, draft: {model: d}, use_rejection_sampling: true",
        "method: dflash, draft: {model: d}, max_concurrency: 4",
        "method: suffix_automaton, max_matching_ngram_size: 5, enable_global_pool: true",
        "method: mtp, max_concurrency: 8",
    ],
)
def test_what_upstream_takes_is_read(read: Callable[[str], object], speculation: str) -> None:
    assert read(speculation)
