"""Two processes that train together, and a target that is spread over devices."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from specpipe.config.training import TrainOptions
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import Unsupported
from specpipe.train.eagle3 import train_eagle3
from specpipe.train.layer_states import StreamedLayerStates
from specpipe.train.medusa import train_medusa
from specpipe.train.placement import HERE, TrainingPlace, target_place
from specpipe.train.target import Target, load_target
from specpipe.train.text import Document
from tests.helpers.models import make_llama
from tests.helpers.training_process import step_gradients

HEADS = "medusa_lm_head.safetensors"


def start(rank: int, port: int, *words: object) -> subprocess.Popen[bytes]:
    world = {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, "-m", "tests.helpers.training_process", *map(str, words)]
    return subprocess.Popen(command, env={**os.environ, **world, "MASTER_ADDR": "127.0.0.1"})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_and_train_the_same_drafters(
    make_run, tmp_path: Path
) -> None:
    """gloo, through accelerate's PartialState, as `accelerate launch` and `torchrun` start them."""
    schedule = {"epochs": 1, "batch_tokens": 64, "learning_rate": 1e-3, "checkpoint_every": 10}
    eagle3 = {"target_layer_ids": [0, 1], "draft_vocab_size": 200, "schedule": schedule}
    config = make_run(medusa={"num_heads": 2, "schedule": schedule}, eagle3=eagle3)
    port = free_port()
    started = [start(rank, port, tmp_path, config.path) for rank in (0, 1)]
    assert [process.wait(300) for process in started] == [0, 0]
    loss, gradients = step_gradients(HERE)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"gradients-{rank}.pt")
        assert found[0] == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(found[1], gradients)
    for train, name in ((train_medusa, HEADS), (train_eagle3, "model.safetensors")):
        single = train(config, Workspace(tmp_path / "single", config.name)).path
        product = tmp_path / "together" / single.relative_to(tmp_path / "single")
        torch.testing.assert_close(
            load_file(product / name), load_file(single / name), atol=2e-3, rtol=0.05
        )
    work = product.parent / "work"
    assert {f.suffix for f in work.iterdir()} == {".f16", ".bin"}, "no journal is left"


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """Return a random target whose LM head has weights of its own."""
    folder = make_llama(tmp_path_factory.mktemp("t") / "t", seed=1, tie_word_embeddings=False)
    return load_target(folder, "float32", folder / "digests.json")


@pytest.fixture
def spread(separate: Target, tmp_path: Path) -> Target:
    """Return the same target with a layer and the LM head on the disk, by accelerate's hooks."""
    from transformers import AutoModelForCausalLM

    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu",
              "model.layers.1": "disk", "model.norm": "cpu", "lm_head": "disk"}  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        separate.path, dtype=torch.float32, device_map=places, offload_folder=tmp_path / "offload"
    )
    return replace(separate, model=model.eval().requires_grad_(False))


def test_a_spread_target_has_the_same_states_and_lm_head(spread: Target, separate: Target) -> None:
    for module in (spread.model.model.layers[1], spread.model.get_output_embeddings()):
        assert {p.device.type for p in module.parameters()} == {"meta"}
    ids = torch.arange(5, 25)[None]
    torch.testing.assert_close(
        spread.hidden(ids, torch.ones_like(ids)), separate.hidden(ids, torch.ones_like(ids))
    )
    document = Document(np.arange(5, 25), np.arange(20) > 4)
    inner, same = (
        StreamedLayerStates(target, (document,), (0, 1)).document(0, 2)
        for target in (spread, separate)
    )
    torch.testing.assert_close((inner.inputs, inner.last), (same.inputs, same.last))
    assert torch.equal(spread.output, separate.output)
    assert torch.equal(spread.embedding, separate.embedding)


def test_a_target_is_spread_where_the_run_asks_for_it(make_run, workspace: Workspace) -> None:
    """Without a GPU, accelerate puts everything into the RAM."""
    schedule = {"epochs": 1, "batch_tokens": 512, "learning_rate": 1e-3, "checkpoint_every": 10}
    config = make_run(spread_target=True, medusa={"num_heads": 1, "schedule": schedule})
    assert (train_medusa(config, workspace).path / HEADS).is_file()


def test_several_processes_do_not_spread_a_target() -> None:
    options = TrainOptions(spread_target=True)
    assert target_place(options, HERE) == "spread"
    with pytest.raises(Unsupported, match="'train.spread_target' is for one process"):
        target_place(options, TrainingPlace(rank=0, world=2))
