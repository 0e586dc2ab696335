"""Where a training computes, and that its parts add up wherever they are computed."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from specpipe.config.training import (
    DraftTraining,
    Eagle3Training,
    MedusaTraining,
    Schedule,
    TrainOptions,
)
from specpipe.core.errors import Unsupported
from specpipe.train.draft_model import DraftTask, prune
from specpipe.train.eagle3 import drafter_config
from specpipe.train.features import Features
from specpipe.train.frozen import FrozenTask
from specpipe.train.joint import JointTask
from specpipe.train.layer_net import Eagle3Net
from specpipe.train.layer_states import StreamedLayerStates
from specpipe.train.loss import Vocabulary
from specpipe.train.medusa import MedusaHeads
from specpipe.train.placement import TrainingPlace, cuts, place
from specpipe.train.redrafter import RecurrentNet
from specpipe.train.sources import StoredFeatures, StreamedFeatures
from specpipe.train.target import Target, recompute_activations
from specpipe.train.text import Document, Split

META = torch.device("meta")  # has shapes and no values; mixing it with the CPU is an error
WIDTH, TOKENS = 16, 320
Task = FrozenTask | DraftTask | JointTask


def documents() -> tuple[Document, ...]:
    rng = np.random.default_rng(0)
    found = [Document(rng.integers(5, 300, n), rng.random(n) < 0.8) for n in (9, 30, 14, 22)]
    return tuple(found)


def frozen(net_of: type, device: torch.device | str = "cpu", soft: bool = True) -> FrozenTask:
    rng = np.random.default_rng(0)
    spoken = rng.integers(0, TOKENS, (40, 4))
    spoken[rng.random(spoken.shape) < 0.3] = -1
    features = Features(
        rng.normal(size=(40, WIDTH)).astype(np.float16), spoken, np.arange(40) // 10
    )
    torch.manual_seed(0)
    output = torch.randn(TOKENS, WIDTH)
    heads = net_of is MedusaHeads
    net = (
        MedusaHeads(3, 1, output, share_output=True) if heads else RecurrentNet(3, 1, output, 0)
    ).to(device)
    options = MedusaTraining(num_heads=3, soft_labels=soft, schedule=Schedule(batch_tokens=24))
    words = Vocabulary(TOKENS, np.arange(10), 5)
    source = StoredFeatures(features, 24, 0)
    return FrozenTask(net, output.to(device), source, features, words, options, 0)


def joint(target: Target) -> JointTask:
    model = copy.deepcopy(target.model).float().requires_grad_(True)
    options = MedusaTraining(num_heads=2, schedule=Schedule(batch_tokens=60))
    heads = MedusaHeads(2, 1, target.output, share_output=True)
    text = Split(documents(), documents())
    words = Vocabulary(TOKENS, np.arange(10), 5)
    return JointTask(model, heads, tuple(model.parameters()), text, words, options, 0, 10)


def draft(target: Target) -> DraftTask:
    options = DraftTraining(schedule=Schedule(batch_tokens=60))
    return DraftTask(target, prune(target.model, [0]), Split(documents(), documents()), options, 0)


def gradients(task: Task) -> list[torch.Tensor]:
    weights = [p for group in task.groups() for p in group.parameters]
    for weight in weights:
        weight.grad = None
    for part in task.parts(0):
        part().backward()
    return [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in weights]


@pytest.mark.parametrize("kind", ["heads", "redrafter", "medusa2", "draft"])
def test_the_parts_of_a_batch_add_up_to_its_loss_and_its_gradients(
    target: Target, kind: str
) -> None:
    tasks = {
        "heads": lambda: frozen(MedusaHeads),
        "redrafter": lambda: frozen(RecurrentNet, soft=False),
        "medusa2": lambda: joint(target),
        "draft": lambda: draft(target),
    }
    whole: Task = tasks[kind]()
    parted = replace(whole, micro_batch=25 if kind in ("medusa2", "draft") else 7)
    assert len(whole.parts(0)) == 1 and len(parted.parts(0)) > 1
    assert float(parted.loss(0).detach()) == pytest.approx(float(whole.loss(0).detach()), rel=1e-5)
    for one, other in zip(gradients(whole), gradients(parted), strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("net", [MedusaHeads, RecurrentNet])
def test_a_drafter_is_trained_on_the_device_of_its_weights(net: type) -> None:
    task = frozen(net, META, soft=False)  # soft labels select rows, which meta tensors cannot
    for part in task.parts(0):
        loss = part()
        assert loss.device == META
        loss.backward()
    weights = [p for p in task.net.parameters() if p.grad is not None]
    assert weights and all(p.grad is not None and p.grad.device == META for p in weights)


def test_an_eagle3_drafter_is_trained_on_the_device_of_its_weights(target: Target) -> None:
    layers = (0, 1)
    config = drafter_config(Eagle3Training(), target, "t", layers, TOKENS)
    net = Eagle3Net(config, target.embedding, target.output, None, 0).to(META)
    states = StreamedLayerStates(target, documents(), layers)
    document = states.document(0, 3, META)
    for logits in net.steps(document, 3):
        logits.sum().backward(retain_graph=True)
        assert logits.device == META
    assert all(p.grad is not None and p.grad.device == META for p in net.parameters())


def test_activations_are_computed_again_to_the_same_gradients(target: Target) -> None:
    plain, again = draft(target), draft(target)
    recompute_activations(again.model)
    calls: list[int] = []
    again.model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for one, other in zip(gradients(plain), gradients(again), strict=True):
        assert torch.equal(one, other)
    assert len(calls) == 2, "once forward, and once again for the backward pass"


def test_states_on_the_fly_are_those_of_the_batchs_documents(target: Target) -> None:
    source = StreamedFeatures(target, documents(), 2, tokens=40, seed=0)
    assert source.steps == 2
    seen = [source.batch(step) for step in range(source.steps)]
    labels = np.concatenate([features.spoken[rows] for features, rows in seen])
    assert len(labels) == sum(int((d.learned[1:-1] & d.learned[2:]).sum()) for d in documents())


def test_items_are_cut_into_parts_of_a_limited_size() -> None:
    def sizes(*items: int, most: int = 0, parts: int = 1) -> Sequence[tuple[int, int]]:
        return [(cut.start, cut.stop) for cut in cuts(items, most, parts)]

    assert sizes(3, 3, 3) == [(0, 3)]
    assert sizes(3, 3, 3, most=6) == [(0, 2), (2, 3)]
    assert sizes(9, 1, 1, most=4) == [(0, 1), (1, 3)], "an item is never divided"
    assert sizes(1, 1, 1, 1, parts=2) == [(0, 2), (2, 4)]
    assert sizes(2, 5, 2, 2, 2, most=8) == [(0, 1), (1, 2), (2, 5)], "padding counts"


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(Unsupported, match=r"'train.device' is cuda:1, but torch finds 1 CUDA"):
        place(TrainOptions(device="cuda:1"))
    assert place(TrainOptions(device="cpu")) == TrainingPlace()
    found = place(TrainOptions(device="cuda:0"))
    assert found.autocast and found.numerics == "cuda bfloat16"


def test_each_process_takes_its_share_of_the_parts() -> None:
    shares = [TrainingPlace(rank=rank, world=2).own(range(5)) for rank in (0, 1)]
    assert [list(share) for share in shares] == [[0, 2, 4], [1, 3]]
