"""A recurrent drafter from a config to files: how it begins, what it learns, who can read it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import silu

from specpipe.checkpoint.redrafter import open_redrafter
from specpipe.config.speculation import ReDrafter
from specpipe.core.artifacts import MANIFEST, Workspace
from specpipe.train.features import read_features
from specpipe.train.redrafter import RecurrentNet, train_redrafter
from specpipe.train.target import Target
from specpipe.train.text import Document
from tests.helpers.models import TEXT

NAMES = {"layers.0.weight": "lm_head.0.linear.weight", "layers.0.bias": "lm_head.0.linear.bias"}
SCHEDULE = {"epochs": 40, "batch_tokens": 64, "learning_rate": 0.01, "checkpoint_every": 50}


def test_it_begins_as_the_lm_head(target: Target) -> None:
    net = RecurrentNet(3, 2, target.embedding, seed=0)
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    for features in net.features(hidden, torch.arange(20).view(5, 4)):
        torch.testing.assert_close(features, hidden)


def test_every_step_sees_the_tokens_before_it_and_no_more(target: Target) -> None:
    torch.manual_seed(3)
    net = RecurrentNet(3, 2, target.embedding, seed=0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    hidden, spoken = torch.randn(1, 64), torch.tensor([[7, 8, 9, 10]])
    honest = net.features(hidden, spoken)
    for place in range(4):
        other = spoken.clone()
        other[0, place] = 50
        changed = [
            not torch.equal(a, b) for a, b in zip(honest, net.features(hidden, other), strict=True)
        ]
        assert changed == [step >= place for step in range(3)]


@pytest.mark.slow
def test_it_learns_and_writes_what_conversion_reads(make_run, workspace: Workspace) -> None:
    config = make_run(redrafter={"draft_len": 2, "num_layers": 1, "schedule": SCHEDULE})
    path = train_redrafter(config, workspace).path
    assert sorted(f.name for f in path.iterdir()) == sorted(
        ["calibration.json", "config.json", "model.safetensors", "report.html", "report.json",
         MANIFEST]
    )  # fmt: skip
    report = json.loads((path / "report.json").read_text())
    for name, before in report["before"].items():
        assert report["after"][name] > before + 0.2, name
    found = open_redrafter(path, ReDrafter("redrafter", ""), "1.2.1")
    assert found.shares_output and found.net.is_rnn and found.net.exit_dim == 64
    assert found.vocab_size == 320 and found.accuracy is not None and len(found.accuracy) == 2
    ranked = load_file(path / "model.safetensors")["token_map"].tolist()
    assert sorted(ranked) == list(range(320)) != ranked


@pytest.mark.slow
def test_what_is_written_computes_what_was_trained(
    make_run, target: Target, workspace: Workspace
) -> None:
    config = make_run(redrafter={"num_layers": 1, "draft_len": 2, "schedule": SCHEDULE})
    parts = load_file(train_redrafter(config, workspace).path / "model.safetensors")
    parts = {name: tensor.float() for name, tensor in parts.items()}
    net = RecurrentNet(2, 1, target.embedding, seed=0)
    net.load_state_dict({n: parts[NAMES.get(n, n)] for n, _ in net.named_parameters()})
    hidden, path = torch.randn(64), [9, 12]
    state = torch.zeros(64)
    for token in path:  # from zeros, with the bias, as TensorRT-LLM's search over beams
        kept = parts["rnn_u.weight"] @ state + parts["rnn_u.bias"]
        state = silu(parts["rnn_w.weight"] @ target.embedding[token] + kept)
    x = parts["input_proj.weight"] @ torch.cat([hidden, state]) + parts["input_proj.bias"]
    x = x + silu(parts["lm_head.0.linear.weight"] @ x + parts["lm_head.0.linear.bias"])
    _, features = net.features(hidden[None], torch.tensor([[*path, 3]]))
    np.testing.assert_allclose(features[0].detach(), x, atol=1e-5)


def test_a_fresh_one_is_left_alone_and_medusa_heads_are_another_product(
    make_run, workspace: Workspace
) -> None:
    first = train_redrafter(make_run(), workspace)
    assert not first.fresh and train_redrafter(make_run(), workspace).fresh
    assert first.path.name == "redrafter"
    changed = train_redrafter(make_run(redrafter={"draft_len": 2}), workspace)
    assert changed.reason.startswith("options changed")


def test_soft_labels_are_what_the_target_says_at_the_place_of_each_guess(
    target: Target, tmp_path: Path
) -> None:
    """Guess k is taught by the state of the position right before the token it is of."""
    learned = np.array([0] * 3 + [1] * 6 + [0] * 2 + [1] * 4, bool)  # two turns of one chat
    documents = [
        Document(np.arange(5, 20), learned),
        Document(np.arange(30, 40), np.ones(10, bool)),
    ]
    features = read_features(target, documents, 3, tmp_path, progress=lambda d, t: None)
    rows = np.arange(len(features))
    known = 0
    for guess in range(3):
        for row, there in zip(rows, features.ahead(rows, guess), strict=True):
            if there >= 0:
                known += 1
                assert features.spoken[there, 0] == features.spoken[row, guess + 1]
    assert known == sum(
        features.spoken[there, 0] == features.spoken[row, guess + 1] >= 0
        for guess in range(3)
        for row in rows
        for there in rows[row + 1 :]
    )  # every token is there once, so no place that is known was missed


@pytest.mark.slow
def test_soft_labels_teach_what_the_target_would_say_instead_of_the_text(
    make_run, target: Target, tmp_path: Path
) -> None:
    """The drafter follows the model, not the text: a random model does not predict the text."""

    def agreement(name: str, *, soft: bool) -> float:
        config = make_run(redrafter={"draft_len": 1, "schedule": SCHEDULE, "soft_labels": soft})
        path = train_redrafter(config, Workspace(tmp_path / name, "t")).path
        parts = load_file(path / "model.safetensors")
        net = RecurrentNet(1, 1, target.embedding, seed=0)
        net.load_state_dict({n: parts[NAMES.get(n, n)] for n, _ in net.named_parameters()})
        ids = torch.tensor(target.tokenizer(TEXT * 4)["input_ids"][:60])
        hidden = target.hidden(ids[None], torch.ones(1, 60, dtype=torch.long))[0]
        (features,) = net.features(hidden[:-1], ids[1:, None])
        said, wanted = ((x @ target.output.T).argmax(-1) for x in (features, hidden[1:]))
        return float((said == wanted).float().mean())

    assert agreement("soft", soft=True) > agreement("hard", soft=False) + 0.2
