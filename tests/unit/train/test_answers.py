"""Self-distillation: the target's own tokens, kept batch by batch."""

import json
from pathlib import Path

import pytest
import torch

from specpipe.config.training import SelfDistillation
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import ConfigError
from specpipe.train.answers import answer_prompts
from specpipe.train.medusa import train_medusa
from specpipe.train.target import Target

PROMPTS = ["Who jumps?", "And the box, what is in it?", "Zebras?", "The lazy dog", "Jugs"]


def how(temperature: float = 0.0) -> SelfDistillation:
    return SelfDistillation("prompts.jsonl", max_tokens=12, temperature=temperature, batch_size=2)


def ask(target: Target, folder: Path, temperature: float = 0.0, seed: int = 0, progress=None):
    ignore = progress or (lambda done, total: None)
    return answer_prompts(target, PROMPTS, how(temperature), seed, folder, progress=ignore)


def test_greedy_answers_are_the_targets_most_likely_tokens(target: Target, tmp_path: Path) -> None:
    for document in ask(target, tmp_path):
        logits = target.model(torch.from_numpy(document.tokens)[None]).logits[0]
        best = logits.argmax(-1).numpy()[:-1]
        answer = document.learned[1:]
        assert answer.sum() >= 1
        assert best[answer].tolist() == document.tokens[1:][answer].tolist()


def test_the_file_names_every_prompt_and_its_answer(target: Target, tmp_path: Path) -> None:
    documents = ask(target, tmp_path)
    (file,) = tmp_path.glob("answers-*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(line["prompt"] for line in lines) == sorted(PROMPTS)
    for line, document in zip(lines, documents, strict=True):
        assert line["prompt_tokens"] + line["answer_tokens"] == document.tokens.tolist()
        assert document.learned.sum() == len(line["answer_tokens"])


@pytest.mark.parametrize("torn", ["", '{"prom', '{"prompt": "of half a batch"}\n'])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_interrupted_answers_go_on_where_they_stopped_and_end_the_same(
    target: Target, tmp_path: Path, temperature: float, torn: str
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    ask(target, tmp_path / "whole", temperature)
    with pytest.raises(KeyboardInterrupt):
        ask(target, tmp_path / "cut", temperature, progress=stop)
    (cut,) = (tmp_path / "cut").glob("answers-*")
    assert len(cut.read_text().splitlines()) == 2
    with cut.open("a") as file:
        file.write(torn)
    ask(target, tmp_path / "cut", temperature)
    (whole,) = (tmp_path / "whole").glob("answers-*")
    assert cut.name == whole.name and cut.read_bytes() == whole.read_bytes()


def test_sampled_answers_depend_on_the_seed(target: Target, tmp_path: Path) -> None:
    def answers(seed: int) -> list[list[int]]:
        return [d.tokens.tolist() for d in ask(target, tmp_path, 1.0, seed)]

    assert answers(0) == answers(0) != answers(50)


def test_heads_can_be_trained_on_answers_alone(make_run, workspace: Workspace) -> None:
    file = workspace.root / "prompts.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    distillation = {"prompts": str(file), "max_tokens": 12, "batch_size": 2}
    schedule = {"epochs": 30, "batch_tokens": 64, "learning_rate": 0.003, "checkpoint_every": 10}
    config = make_run(
        files=[], self_distillation=distillation, medusa={"num_heads": 1, "schedule": schedule}
    )
    result = train_medusa(config, workspace)
    report = json.loads((result.path / "report.json").read_text())
    assert report["facts"]["documents"] + report["facts"]["hold-out documents"] == len(PROMPTS)
    assert report["curve"][-1]["loss"] < report["curve"][1]["loss"]


def test_without_any_text_nothing_is_trained(make_run, workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="no text to train on\n.*train.files"):
        train_medusa(make_run(files=[]), workspace)


def test_a_bad_line_in_the_prompts_is_named(make_run, workspace: Workspace) -> None:
    file = workspace.root / "prompts.jsonl"
    file.parent.mkdir()
    file.write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(ConfigError, match=r"prompts\.jsonl:2: not JSON"):
        train_medusa(make_run(self_distillation={"prompts": str(file)}), workspace)


def test_a_prompt_longer_than_a_document_is_left_out_and_counted(
    make_run, workspace: Workspace
) -> None:
    file, said = workspace.root / "prompts.jsonl", list[str]()
    file.parent.mkdir()
    lines = [{"prompt": p} for p in [*PROMPTS, "The fox jumps. " * 3000]]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    distillation = {"prompts": str(file), "max_tokens": 4, "batch_size": 2}
    config = make_run(files=[], self_distillation=distillation)
    result = train_medusa(config, workspace, notify=said.append)
    assert (
        "warning: 1 of 6 prompts were left out: 1 for: longer than train.sequence_length "
        "(first: prompt 6)" in said
    )
    facts = json.loads((result.path / "report.json").read_text())["facts"]
    assert facts["prompts left out: longer than train.sequence_length"] == 1
    assert facts["documents"] + facts["hold-out documents"] == len(PROMPTS)
