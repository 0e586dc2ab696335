"""Training of a ReDrafter, in Apple's layout on disk (Zhang et al. 2024, arXiv 2403.09919).

A recurrent state runs over the tokens that were guessed, beginning with the one that the target has
just chosen itself: s_t = silu(W e_t + U s_(t-1) + b), from a state of zeros. A guess is made of the
target's hidden state h and s_t: a projection of both, residual blocks x + silu(A x + a), and the
output layer. So a guess knows the guesses before it, which Medusa's heads do not.

The recurrence is that of Apple's code and of TensorRT-LLM's engines (`_beam_search_candidates` in
tensorrt_llm/models/redrafter/redrafter_helper.py; its `drafter.rnn_embed`, without silu, belongs to
a search that no engine runs).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from specpipe.checkpoint.belonging import Mark, mark_for, save_marked
from specpipe.config.run_config import RunConfig
from specpipe.core.artifacts import Workspace, write_text
from specpipe.core.contracts import Ints
from specpipe.core.drafters import TOKEN_MAP
from specpipe.train.frozen import learn, report, write_calibration
from specpipe.train.job import DrafterKind, Notify, Progress, TrainingJob
from specpipe.train.produce import TrainResult, produce
from specpipe.train.report import TrainingReport

RECURRENCE = "silu"  # around W e + U s + b


@dataclass(frozen=True)
class DrafterConfig:
    """config.json next to the weights, in Apple's keys and one of specpipe's."""

    hidden_size: int
    vocab_size: int
    num_draft_layers: int
    exit_dim: int  # width of the residual blocks
    rnn: bool = True
    recurrence: str = RECURRENCE  # not a key of Apple's, see `checkpoint.redrafter`


class RecurrentNet(nn.Module):
    """The drafter; its output layer is the target's LM head, which stays as it is."""

    def __init__(self, steps: int, layers: int, embedding: torch.Tensor, seed: int) -> None:
        """Begin as the LM head that sees only h; `embedding` [V, D] is the target's, frozen."""
        super().__init__()
        self.steps = steps
        width = int(embedding.shape[1])
        self.rnn_u = nn.Linear(width, width)
        self.rnn_w = nn.Linear(width, width, bias=False)
        self.input_proj = nn.Linear(2 * width, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        # Were both the state and what reads it zero, neither would get a gradient.
        draws = torch.randn((width, width), generator=torch.Generator().manual_seed(seed))
        scale = float(embedding.float().pow(2).mean().sqrt())
        with torch.no_grad():
            self.rnn_w.weight.copy_(draws / (width**0.5 * scale))
            self.input_proj.weight[:, :width] = torch.eye(width)
        self.register_buffer("embedding", embedding.detach(), persistent=False)

    def features(self, hidden: torch.Tensor, spoken: torch.Tensor) -> list[torch.Tensor]:
        """Return what each step hands to the output layer: steps x [N, D].

        `hidden` [N, D] is followed by the tokens `spoken` [N, steps or more]: step k, counted from
        0, sees the first k + 1 of them, all right, and guesses the next. What a negative token
        leads to is of no account.
        """
        assert isinstance(self.embedding, torch.Tensor)
        state, found = torch.zeros_like(hidden), []
        for k in range(self.steps):
            token = self.embedding[spoken[:, k].clamp(min=0)].to(hidden.dtype)
            state = functional.silu(self.rnn_w(token) + self.rnn_u(state))
            x = self.input_proj(torch.cat([hidden, state], 1))
            for layer in self.layers:
                x = x + functional.silu(layer(x))
            found.append(x)
        return found

    def output(self, step: int, shared: torch.Tensor) -> torch.Tensor:
        """Return the output layer of every step: the target's, [V, D]."""
        return shared


def write_drafter(
    net: RecurrentNet, folder: Path, token_map: Ints, mark: Mark | None = None
) -> None:
    """Write `model.safetensors` in float16, without an output layer, and `config.json`.

    The file carries the `mark` of its target. `token_map` [V] are the tokens, the most frequent
    first.
    """
    tensors = {
        apples_name(name): t.detach().to(torch.float16).cpu() for name, t in net.named_parameters()
    }
    tensors[TOKEN_MAP] = torch.from_numpy(token_map.astype(np.int32))
    save_marked(tensors, folder / "model.safetensors", mark)
    width = net.rnn_u.in_features
    config = DrafterConfig(width, len(token_map), len(net.layers), width)
    write_text(folder / "config.json", json.dumps(asdict(config), indent=2, sort_keys=True) + "\n")


def apples_name(ours: str) -> str:
    """Return Apple's name: `layers.0.weight` is `lm_head.0.linear.weight`."""
    module, _, rest = ours.partition(".")
    if module != "layers":
        return ours
    layer, part = rest.split(".")
    return f"lm_head.{layer}.linear.{part}"


def redrafter_kind(config: RunConfig) -> DrafterKind:
    """Return what `train redrafter` makes for a run."""
    return DrafterKind("redrafter", config.train.redrafter, _redrafter, recipe=RECURRENCE)


def train_redrafter(
    config: RunConfig,
    workspace: Workspace,
    *,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
    measure: bool = False,
) -> TrainResult:
    """Train a ReDrafter as `train.redrafter` specifies; a product that is up to date stays.

    Writes `model.safetensors` in Apple's names, `config.json`, `calibration.json` and a report.
    Raises ConfigError for text that cannot be used.
    """
    made = redrafter_kind(config)
    return produce(made, config, workspace, notify=notify, progress=progress, measure=measure)


def _redrafter(job: TrainingJob, out: Path) -> TrainingReport:
    options, target = job.config.train.redrafter, job.target
    net = RecurrentNet(
        options.draft_len, options.num_layers, target.embedding, job.config.train.seed
    ).to(job.placement.device)
    learned = learn(job, net, options, options.draft_len)
    write_drafter(net, out, learned.token_map, mark_for(target.path))
    write_calibration(learned.after.calibration, out)
    return report(f"ReDrafter for {job.config.name}", job, options, learned)
