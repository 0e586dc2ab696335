"""Prompts that the target makes up: different ones, kept batch by batch."""

import re
from pathlib import Path

import pytest

from specpipe.config.training import SelfDistillation
from specpipe.core.contracts import Sampling
from specpipe.core.errors import ConfigError
from specpipe.train import invented
from specpipe.train.gather import gather_text, read_text
from specpipe.train.invented import invent_prompts
from specpipe.train.target import Target

Batches = dict[int, list[list[int]]]  # seed -> tokens of the target


@pytest.fixture
def asked(target: Target, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the tiny target, which ends nothing by itself, end every other prompt; note the seeds."""
    seeds: list[int] = []

    def generate(
        model: Target, prompts: list[list[int]], most: int, sampling: Sampling, seed: int
    ) -> list[list[int]]:
        seeds.append(seed)
        opening = model.tokenizer.decode(prompts[0])
        assert "user" in opening and "assistant" not in opening
        words = [model.tokenizer(f"fox {seed} {n // 4}")["input_ids"] for n in range(len(prompts))]
        return [[*w, model.end_ids[0]] if n % 2 else w for n, w in enumerate(words)]

    monkeypatch.setattr(invented, "generate", generate)
    return seeds


def invent(target: Target, folder: Path, wanted: int) -> list[str]:
    how = SelfDistillation(invented_prompts=wanted, batch_size=8)
    return invent_prompts(target, how, 3, folder, progress=lambda done, total: None)


def test_only_ended_and_different_prompts_count(
    target: Target, asked: list[int], tmp_path: Path
) -> None:
    prompts = invent(target, tmp_path, 3)
    assert len(set(prompts)) == 3
    assert asked == [3, 4]  # eight attempts end four, two of them equal


def test_none_are_made_up_unless_asked_for(
    target: Target, asked: list[int], tmp_path: Path
) -> None:
    assert invent(target, tmp_path, 0) == []
    assert asked == []


def test_what_was_made_up_before_is_kept(target: Target, asked: list[int], tmp_path: Path) -> None:
    first = invent(target, tmp_path, 2)
    assert invent(target, tmp_path, 2) == first
    assert invent(target, tmp_path, 4)[:2] == first
    assert asked == [3, 4]


def test_a_target_that_ends_nothing_is_refused(
    target: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(invented, "generate", lambda target, prompts, *rest: [[5]] * len(prompts))
    with pytest.raises(ConfigError, match="ended 0 of 400 prompts"):
        invent(target, tmp_path, 300)


def test_missing_prompts_are_named_with_their_line_and_the_script_that_writes_them(
    target: Target, make_run, tmp_path: Path
) -> None:
    run = make_run(self_distillation={"prompts": "nowhere/prompts.jsonl"})
    with pytest.raises(ConfigError) as caught:
        gather_text(
            read_text(run, target.tokenizer),
            run,
            target,
            tmp_path,
            notify=print,
            progress=lambda done, total: None,
        )
    said = str(caught.value)
    assert re.search(r"\.yaml:\d+: 'train.self_distillation.prompts' is 'nowhere/", said)
    assert "`scripts/training-prompts --out nowhere/prompts.jsonl`" in said
