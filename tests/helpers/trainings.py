"""Short trainings on a tiny model, and what judges a hold-out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from specpipe.config.training import DraftTraining, Eagle3Training, MedusaTraining
from specpipe.train.draft_model import DraftTask, prune, train_draft
from specpipe.train.eagle3 import drafter_config, train_eagle3
from specpipe.train.joint import JointTask
from specpipe.train.layer_net import Eagle3Net
from specpipe.train.layer_states import read_layer_states
from specpipe.train.layer_task import Eagle3Task
from specpipe.train.loss import Vocabulary
from specpipe.train.medusa import MedusaHeads, train_medusa
from specpipe.train.redrafter import train_redrafter
from specpipe.train.target import Target
from specpipe.train.text import Document, Split

ASKED = {"code": "def fox", "prose": "The quick brown fox", "": "The lazy dog"}
KINDS = {
    "medusa": train_medusa,
    "redrafter": train_redrafter,
    "eagle3": train_eagle3,
    "draft": train_draft,
}


def in_categories(folder: Path) -> dict[str, object]:
    """Write prompts of several categories, and return the keys of a short training."""
    file = folder / "prompts.jsonl"
    lines = [{"prompt": f"{text} {n}", "category": name}
             for name, text in ASKED.items() for n in range(8)]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, lines)))
    schedule = {"schedule": {"epochs": 0.5, "batch_tokens": 64}}
    return {
        "files": [],
        "hold_out": 0.5,
        "self_distillation": {"prompts": str(file), "max_tokens": 16},
        **dict.fromkeys(("medusa", "redrafter", "eagle3", "draft"), schedule),
    }


def documents(count: int) -> tuple[Document, ...]:
    """Return documents of 40 random tokens, all learned."""
    rng = np.random.default_rng(0)
    return tuple(Document(rng.integers(5, 300, 40), np.ones(40, bool)) for _ in range(count))


def judging(
    kind: str, target: Target, held_out: tuple[Document, ...], folder: Path
) -> Callable[[], object]:
    """Return what judges a draft, heads of medusa2 or an EAGLE-3 drafter on documents."""
    text = Split(held_out, held_out)
    if kind == "draft":
        task = DraftTask(target, prune(target.model, [0]), text, DraftTraining(), 0)
        return lambda: task.judge(held_out)
    if kind == "medusa2":
        heads = MedusaHeads(2, 1, target.output, share_output=True)
        joint = JointTask(
            target.model, heads, (), text, Vocabulary(320, np.arange(5), 5),
            MedusaTraining(num_heads=2), 0, 10,
        )  # fmt: skip
        return joint.judge
    states = read_layer_states(target, held_out, [0, 1], folder, progress=lambda d, t: None)
    ids = torch.arange(len(target.output))
    config = drafter_config(Eagle3Training(), target, "t", [0, 1], len(ids))
    net = Eagle3Net(config, target.embedding, target.output, None, 0)
    return Eagle3Task(net, target.output, ids, states, states, Eagle3Training(), 0).judge
