"""Medusa heads from a config to files: how they begin, what they learn, what a kill leaves."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from specpipe.core.artifacts import MANIFEST, Workspace, digest_file
from specpipe.core.errors import ConfigError
from specpipe.train.features import read_features
from specpipe.train.joint import heads_weight
from specpipe.train.medusa import MedusaHeads, train_medusa
from specpipe.train.target import Target
from specpipe.train.text import Document

PRODUCTS = ["calibration.json", "config.json", "medusa_lm_head.safetensors", "report.html",
            "report.json", MANIFEST]  # fmt: skip


def report_of(path: Path):
    return json.loads((path / "report.json").read_text())


def files_of(path: Path) -> dict[str, str]:
    return {str(f.relative_to(path)): digest_file(f) for f in path.rglob("*") if f.is_file()}


def kill_at(step: int, of: int):
    """Return a progress callback that is interrupted at one step of a training of `of` steps."""

    def progress(done: int, total: int) -> None:
        if (done, total) == (step, of):
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("share_output", [True, False])
def test_heads_begin_as_the_lm_head(target: Target, share_output: bool) -> None:
    heads = MedusaHeads(3, 2, target.output, share_output=share_output)
    hidden = torch.randn(5, target.output.shape[1], generator=torch.Generator().manual_seed(0))
    spoken = torch.zeros((5, 4), dtype=torch.long)
    for k, features in enumerate(heads.features(hidden, spoken)):
        logits = features @ heads.output(k, target.output).T
        assert torch.equal(logits, hidden @ target.output.T)


def test_it_learns_and_writes_the_layout_of_fasterdecoding(make_run, workspace: Workspace) -> None:
    schedule = {"epochs": 40, "batch_tokens": 64, "learning_rate": 0.01, "checkpoint_every": 50}
    result = train_medusa(make_run(medusa={"num_heads": 2, "schedule": schedule}), workspace)
    assert sorted(files_of(result.path)) == sorted(PRODUCTS)
    weights = load_file(result.path / "medusa_lm_head.safetensors")
    assert {name: tuple(t.shape) for name, t in weights.items()} == {
        "0.0.linear.weight": (64, 64), "0.0.linear.bias": (64,),
        "1.0.linear.weight": (64, 64), "1.0.linear.bias": (64,), "token_map": (320,),
    }  # fmt: skip
    ranked = weights.pop("token_map").tolist()
    assert sorted(ranked) == list(range(320)) != ranked
    assert {t.dtype for t in weights.values()} == {torch.float16}
    facts = json.loads((result.path / "config.json").read_text())
    assert facts["medusa_num_heads"] == 2 and facts["medusa_num_layers"] == 1
    assert facts["share_output"] and facts["hidden_size"] == 64
    report = report_of(result.path)
    assert report["curve"][-1]["loss"] < 0.8 * report["curve"][1]["loss"]
    for name, before in report["before"].items():
        assert report["after"][name] > before + 0.2, name


def test_the_calibration_agrees_with_the_report(make_run, workspace: Workspace) -> None:
    path = train_medusa(make_run(), workspace).path
    calibration, report = json.loads((path / "calibration.json").read_text()), report_of(path)
    assert np.shape(calibration["conditional"]) == (2, 10)
    assert calibration["conditional"][0] == calibration["accuracy"][0]
    assert calibration["samples"][0] == report["heads"][0]["positions"]
    assert calibration["samples"][1] <= calibration["positions"][1]
    assert sum(calibration["conditional"][0]) == pytest.approx(report["heads"][0]["top"][9])


def test_a_fresh_product_is_left_alone_and_changed_options_make_it_again(
    make_run, workspace: Workspace
) -> None:
    first = train_medusa(make_run(), workspace)
    assert not first.fresh and train_medusa(make_run(), workspace).fresh
    changed = train_medusa(make_run(medusa={"head_loss_decay": 0.5}), workspace)
    assert changed.reason.startswith("options changed")


def test_two_trainings_give_equal_bytes_and_another_seed_gives_others(
    make_run, tmp_path: Path
) -> None:
    one, two = (train_medusa(make_run(), Workspace(tmp_path / n, "t")) for n in ("a", "b"))
    other = train_medusa(make_run(seed=1), Workspace(tmp_path / "c", "t"))
    assert files_of(one.path) == files_of(two.path)
    assert files_of(one.path)["config.json"] == files_of(other.path)["config.json"]
    name = "medusa_lm_head.safetensors"
    assert files_of(one.path)[name] != files_of(other.path)[name]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["medusa1", "medusa2"])
def test_a_killed_training_leaves_nothing_that_looks_whole_and_resumes_to_the_same_bytes(
    make_run, tmp_path: Path, stage: str
) -> None:
    config = make_run(medusa={"stage": stage, "loss_vocabulary": 40, "loss_samples": 20})
    whole = train_medusa(config, Workspace(tmp_path / "whole", "t"))
    steps = report_of(whole.path)["curve"][-1]["step"]
    killed = Workspace(tmp_path / "killed", "t")
    with pytest.raises(KeyboardInterrupt):
        train_medusa(config, killed, progress=kill_at(17, steps))
    place = killed.engines / "train"
    assert not list(place.rglob(MANIFEST)) and not list(place.rglob("medusa_lm_head*"))
    seen: list[int] = []
    resumed = train_medusa(
        config, killed, progress=lambda done, total: seen.append(done) if total == steps else None
    )
    assert seen[0] == 11, "the checkpoint of step 10 is where it goes on"
    assert files_of(resumed.path) == files_of(whole.path)
    assert not list(place.rglob("resume-*")), "the checkpoint goes when it is not needed"


def test_hidden_states_are_computed_once(target: Target, tmp_path: Path) -> None:
    documents = [Document(np.arange(5, 25), np.ones(20, bool)) for _ in range(3)]
    calls: list[int] = []
    read = [
        read_features(target, documents, 2, tmp_path, progress=lambda d, t: calls.append(d))
        for _ in range(2)
    ]
    assert calls == [3]
    assert read[0].hidden.shape == (3 * 18, 64) and read[0].hidden.dtype == np.float16
    assert np.array_equal(read[0].hidden, read[1].hidden)
    ids = torch.from_numpy(documents[0].tokens)[None]
    exact = target.hidden(ids, torch.ones_like(ids))[0, :18]
    assert np.allclose(read[0].hidden[:18], exact.numpy(), atol=2e-2)


def test_text_without_a_place_for_a_head_is_refused(target: Target, tmp_path: Path) -> None:
    silent = [Document(np.arange(9), np.zeros(9, bool))]
    with pytest.raises(ConfigError, match="no position of the text has a label"):
        read_features(target, silent, 2, tmp_path, progress=lambda d, t: None)


def test_own_output_layers_are_trained_and_written(make_run, workspace: Workspace) -> None:
    result = train_medusa(make_run(medusa={"share_output": False, "num_layers": 2}), workspace)
    weights = load_file(result.path / "medusa_lm_head.safetensors")
    assert {"0.0.linear.weight", "0.1.linear.bias", "0.2.weight", "1.2.weight"} <= set(weights)
    assert len(weights) == 2 * (2 * 2 + 1) + 1
    assert not torch.equal(weights["0.2.weight"], weights["1.2.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_medusa2_writes_a_changed_backbone_that_transformers_loads(
    make_run, workspace: Workspace, tiny: Path, lora_rank: int
) -> None:
    from transformers import AutoModelForCausalLM

    before, said = files_of(tiny), []
    config = make_run(medusa={"stage": "medusa2", "lora_rank": lora_rank})
    result = train_medusa(config, workspace, notify=said.append)
    assert any("changes the backbone" in text for text in said)
    backbone = AutoModelForCausalLM.from_pretrained(result.path / "backbone").state_dict()
    original = AutoModelForCausalLM.from_pretrained(tiny).state_dict()
    assert backbone.keys() == original.keys()
    changed = {n for n in original if not torch.equal(original[n], backbone[n])}
    assert "model.layers.0.self_attn.q_proj.weight" in changed
    assert ("model.embed_tokens.weight" in changed) == (lora_rank == 0)
    assert files_of(tiny) == before, "the target itself stays as it is"
    report = report_of(result.path)
    assert report["after"]["head 0 top-1"] > report["before"]["head 0 top-1"] + 0.2
    assert json.loads((result.path / "config.json").read_text())["base_model_name_or_path"] == (
        "backbone"
    )


def test_the_weight_of_the_heads_loss_rises_to_its_full_value(make_run) -> None:
    options = make_run(medusa={"stage": "medusa2", "heads_loss_weight": 0.4}).train.medusa
    weights = [heads_weight(options, step, 10) for step in range(10)]
    assert weights == sorted(weights) and 0 < weights[0] < 0.1
    assert weights[-1] == pytest.approx(0.4)


def test_a_folder_of_the_users_where_the_product_should_go_is_kept(
    make_run, tmp_path: Path
) -> None:
    """`train.out` names a folder that people keep other things in."""
    config = make_run()
    config = replace(config, train=replace(config.train, out=str(tmp_path / "drafts")))
    mine = tmp_path / "drafts/medusa/notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ConfigError, match=r"drafts/medusa is not empty and has no specpipe.json"):
        train_medusa(config, Workspace(tmp_path / "w", "t"))
    assert mine.read_text() == "mine"
