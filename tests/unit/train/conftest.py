"""Fixtures: the tiny model's folder, text for it, and a run that trains on that text."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from specpipe.config.run_config import RunConfig, read_config
from specpipe.core.artifacts import Workspace
from specpipe.train.target import Target, load_target
from tests.helpers.models import CHATS, TEXT


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread: for models this small, more of them only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def target(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Target:
    """Return the tiny model in float32."""
    return load_target(tiny, "float32", tmp_path_factory.mktemp("memory") / "digests.json")


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Return a JSONL file of chats."""
    file = tmp_path / "chats.jsonl"
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ]
            }
        )
        for question, answer in CHATS
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture
def make_run(
    write_config: Callable[..., Path], tmp_path: Path, chats: Path
) -> Callable[..., RunConfig]:
    """Return a function that reads a run whose `train:` section has the given keys."""
    prose = tmp_path / "prose.txt"
    prose.write_text(TEXT * 12)

    def make(**train: Any) -> RunConfig:
        schedule = {"epochs": 8, "batch_tokens": 64, "learning_rate": 0.003, "checkpoint_every": 10}
        values: dict[str, Any] = {
            "files": [str(prose), str(chats)],
            "sequence_length": 64,
            "hold_out": 0.2,
            "dtype": "float32",
            "medusa": {"num_heads": 2, "schedule": schedule},
            "redrafter": {"num_layers": 1, "draft_len": 3, "schedule": schedule},
            "draft": {"num_layers": 1, "schedule": schedule},
        }
        for key, value in train.items():
            merge = isinstance(value, dict) and key in values
            values[key] = {**values[key], **value} if merge else value
        return read_config(write_config(train=values))

    return make


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Return an empty workspace."""
    return Workspace(tmp_path / "w", "tiny")
