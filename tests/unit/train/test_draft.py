"""A distilled draft: which layers, nearer to the target than before, and a usable checkpoint."""

import json
from pathlib import Path

import pytest
import torch

from specpipe.checkpoint.convert import Conversion
from specpipe.checkpoint.source import open_source
from specpipe.config.training import DraftTraining
from specpipe.core.artifacts import MANIFEST, Workspace, digest_file
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.train.draft_model import divergence, kept_layers, prune, train_draft
from specpipe.train.target import load_target
from tests.helpers.families import make_family


def test_layers_are_spread_evenly_with_the_first_and_the_last() -> None:
    assert kept_layers(DraftTraining(num_layers=4), 10) == (0, 3, 6, 9)
    assert kept_layers(DraftTraining(), 30)[::9] == (0, 29)
    assert kept_layers(DraftTraining(num_layers=5), 5) == (0, 1, 2, 3, 4)
    assert kept_layers(DraftTraining(layers=(1, 2, 8)), 10) == (1, 2, 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (DraftTraining(layers=(0, 10)), r"\[0, 10\]: the target's layers are 0 to 9"),
        (DraftTraining(num_layers=11), "is 11: the target has 10 layers"),
    ],
)
def test_layers_that_do_not_exist_are_refused(options: DraftTraining, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        kept_layers(options, 10)


def test_a_layer_keeps_its_kind_when_the_draft_is_saved(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = make_family(tmp_path / "model", "SmolLM3ForCausalLM", "every other layer")
    draft = prune(AutoModelForCausalLM.from_pretrained(folder), [1]).eval()
    draft.save_pretrained(tmp_path / "draft")
    saved, text = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "draft"),
        torch.arange(3, 40)[None],
    )
    assert draft.config.no_rope_layers == [0]
    torch.testing.assert_close(saved(text).logits, draft(text).logits)


def test_a_text_model_within_another_is_not_trained(tmp_path: Path) -> None:
    folder = make_family(tmp_path / "model", "Gemma3ForCausalLM", "window")
    text = json.loads((folder / "config.json").read_text())
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    (folder / "config.json").write_text(json.dumps(whole))
    with pytest.raises(Unsupported, match="within a model for images"):
        load_target(folder, "float32", tmp_path / "digests.json")


def test_the_divergence_is_zero_for_equals_and_the_textbook_value_otherwise() -> None:
    taught = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]])
    said = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert float(divergence(taught, taught, 2.0)) == pytest.approx(0, abs=1e-6)
    p, q = (taught / 2).softmax(-1), (said / 2).softmax(-1)
    wanted = float((p * (p / q).log()).sum(-1).mean()) * 4
    assert float(divergence(taught, said, 2.0)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_it_comes_nearer_to_the_target_and_is_a_checkpoint_like_any_other(
    make_run, workspace: Workspace, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = train_draft(make_run(), workspace)
    report = json.loads((result.path / "report.json").read_text())
    assert report["after"]["kl"] < 0.7 * report["before"]["kl"]
    assert report["after"]["overlap"] > report["before"]["overlap"]
    assert train_draft(make_run(), workspace).fresh
    model = AutoModelForCausalLM.from_pretrained(result.path)
    assert model.config.num_hidden_layers == 1
    assert AutoTokenizer.from_pretrained(result.path).chat_template
    out = tmp_path / "converted"
    out.mkdir()
    Conversion(open_source(result.path), "float32").write(out, lambda done, total: None)
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 1


@pytest.mark.slow
def test_a_killed_distillation_resumes_to_the_same_bytes(make_run, tmp_path: Path) -> None:
    config, killed = make_run(), Workspace(tmp_path / "killed", "t")
    whole = train_draft(config, Workspace(tmp_path / "whole", "t"))
    steps = json.loads((whole.path / "report.json").read_text())["curve"][-1]["step"]

    def kill(done: int, total: int) -> None:
        if (done, total) == (23, steps):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_draft(config, killed, progress=kill)
    assert not list(killed.root.rglob(MANIFEST)) and not list(killed.root.rglob("model.safe*"))
    resumed = train_draft(config, killed)
    for name in ("model.safetensors", "report.json", MANIFEST):
        assert digest_file(resumed.path / name) == digest_file(whole.path / name)
