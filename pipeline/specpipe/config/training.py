"""The `train:` section of a run: the text that drafters learn from, and the options of training.

The text under a field documents its key: `scripts/write-docs` makes docs/configuration.md from it.
"""

from dataclasses import dataclass, field
from typing import Literal

from specpipe.config.keys import at_least, between, matching
from specpipe.core.model import Dtype


@dataclass(frozen=True)
class Dataset:
    """A dataset of the Hugging Face hub, or a folder in its layout; needs the extra `train`."""

    name: str
    """Id on the hub (owner/name), or a folder."""
    subset: str | None = None
    """Configuration of the dataset. Default: its only one."""
    split: str = "train"
    """Split, or a slice of one, such as `train[:1000]`."""
    revision: str | None = None
    """Branch, tag or commit. Default: the newest one."""
    rows: int | None = field(default=None, metadata=at_least(1))
    """Rows that are read. Default: all."""


@dataclass(frozen=True)
class SelfDistillation:
    """The target answers prompts, and a drafter learns from the answers.

    In addition to the prompts of a file, the target can answer prompts that it invents (Xu et al.
    2024, "Magpie", arXiv 2406.08464). They are like the prompts that it was trained on.
    """

    prompts: str | None = None
    """File or folder of prompts, which the target answers: JSON with a `prompt` key, or chats, of
    which the messages before the first answer are the prompt."""
    datasets: tuple[Dataset, ...] = ()
    """Datasets whose prompts the target answers, with the keys of `train.datasets`."""
    invented_prompts: int = field(default=0, metadata=at_least(0))
    """Further prompts that the target invents ([Magpie](https://arxiv.org/abs/2406.08464)) and
    answers."""
    max_tokens: int = field(default=256, metadata=at_least(1))
    """Maximum number of tokens per answer."""
    temperature: float = field(default=0.0, metadata=between(0, 10))
    """Sampling temperature of the answers; 0 decodes greedily."""
    batch_size: int = field(default=32, metadata=at_least(1))
    """Answers that are generated at a time; with `endpoint`, requests in flight."""
    endpoint: str | None = field(
        default=None, metadata=matching(r"https?://\S+", "an address that begins with http")
    )
    """OpenAI API of a server that runs the target, e.g. `http://127.0.0.1:9000`. It answers the
    prompts instead of this process, which still invents prompts."""
    endpoint_key_file: str | None = None
    """File with the key that `endpoint` requires."""


@dataclass(frozen=True)
class Schedule:
    """Length and rate of a training: AdamW, linear warm-up, cosine decay to zero."""

    epochs: float = field(default=2.0, metadata=between(0.001, 1000))
    """Passes over the text."""
    batch_tokens: int = field(default=1024, metadata=at_least(1))
    """Positions per step."""
    learning_rate: float = field(default=1e-3, metadata=between(1e-8, 1))
    """Peak learning rate."""
    warm_up: float = field(default=0.1, metadata=between(0, 1))
    """Share of the steps with a rising learning rate."""
    checkpoint_every: int = field(default=100, metadata=at_least(1))
    """Steps between two checkpoints, and between two points of the report's curve."""


@dataclass(frozen=True)
class DrafterTraining:
    """Options that the training of heads and of a recurrent drafter share.

    `soft_labels` is knowledge distillation (Hinton et al. 2015, arXiv 1503.02531).
    """

    soft_labels: bool = False
    """Learn the target's whole distribution at each position, not only its token. Refused for
    `medusa2`, whose target changes during the training."""
    head_loss_decay: float = field(default=0.8, metadata=between(0, 1))
    """The loss of draft token k has the weight `head_loss_decay` to the power k."""
    loss_vocabulary: int = field(default=0, metadata=at_least(0))
    """0: the loss is over all tokens. N: over the N most frequent tokens and a sample of the
    rest."""
    loss_samples: int = field(default=1024, metadata=at_least(1))
    """With `loss_vocabulary`: tokens that are sampled from the rest in each step."""
    schedule: Schedule = Schedule()


@dataclass(frozen=True)
class MedusaTraining(DrafterTraining):
    """Heads on the target's last hidden state (Cai et al. 2024, arXiv 2401.10774)."""

    stage: Literal["medusa1", "medusa2"] = "medusa1"
    """`medusa2` also trains the backbone, which changes the model's answers."""
    num_heads: int = field(default=4, metadata=between(1, 16))
    """Number of heads."""
    num_layers: int = field(default=1, metadata=between(1, 8))
    """Residual layers per head."""
    share_output: bool = True
    """`true`: all heads use the target's LM head, frozen. `false`: each head trains a copy."""
    lora_rank: int = field(default=0, metadata=between(0, 1024))
    """`medusa2`: rank of the LoRA on the backbone; 0 trains every weight."""
    head_lr_ratio: float = field(default=4.0, metadata=between(0.001, 1000))
    """`medusa2`: learning rate of the heads, relative to that of the backbone."""
    heads_loss_weight: float = field(default=0.2, metadata=between(0, 100))
    """`medusa2`: weight of the heads' loss at the end of the training."""


@dataclass(frozen=True)
class ReDrafterTraining(DrafterTraining):
    """A recurrent drafter on the target's last hidden state (Zhang et al. 2024, arXiv 2403.09919).

    Its output layer is the target's LM head, frozen. Its residual blocks have the target's width.
    """

    num_layers: int = field(default=2, metadata=between(1, 8))
    """Residual layers, with the target's hidden size."""
    draft_len: int = field(default=4, metadata=between(1, 16))
    """Draft tokens in sequence that it learns."""


@dataclass(frozen=True)
class Eagle3Training:
    """One decoder layer on hidden states of several layers (Li et al. 2025, arXiv 2503.01840).

    Its sizes are those of a layer of the target. Its output layer starts as the target's rows, and
    is trained.
    """

    ttt_steps: int = field(default=3, metadata=between(1, 16))
    """Draft tokens in sequence that it learns, the later ones from its own states (training-time
    test)."""
    ttt_step_loss_decay: float = field(default=0.8, metadata=between(0, 1))
    """The loss of step s has the weight `ttt_step_loss_decay` to the power s."""
    draft_vocab_size: int = field(default=8192, metadata=at_least(16))
    """Tokens that it can draft: the most frequent ones of the text that is learned."""
    target_layer_ids: tuple[int, ...] = ()
    """Layers of the target whose inputs it reads. Default: 2, half the number of layers, and the
    third from the end."""
    loss_fn: Literal["kl_div", "ce"] = "kl_div"
    """`kl_div`: learn the target's distribution over the draft vocabulary. `ce`: learn only the
    most likely token of it."""
    norm_before_residual: bool = False
    """Add attention to the normed hidden state."""
    schedule: Schedule = Schedule()


@dataclass(frozen=True)
class DraftTraining:
    """A copy of the target with fewer layers, which learns the target's distribution."""

    num_layers: int | None = field(default=None, metadata=at_least(1))
    """Layers of the draft model, evenly spread. Default: a third of the target's."""
    layers: tuple[int, ...] = ()
    """Layers of the target to keep, instead of evenly spread ones."""
    temperature: float = field(default=1.0, metadata=between(0.01, 100))
    """Temperature of both distributions in the loss."""
    schedule: Schedule = Schedule(learning_rate=3e-4)


@dataclass(frozen=True)
class TrainOptions:
    """The text, and options for each kind of drafter."""

    files: tuple[str, ...] = ()
    """Files or folders: chats as JSON, JSON lines or parquet, of which only the assistant's tokens
    are learned, and plain text. docs/training.md lists the shapes."""
    datasets: tuple[Dataset, ...] = ()
    """Datasets of the Hugging Face hub, with rows in the same shapes."""
    self_distillation: SelfDistillation | None = None
    sequence_length: int = field(default=512, metadata=at_least(8))
    """Tokens per sequence; longer documents are cut."""
    hold_out: float = field(default=0.1, metadata=between(0.001, 0.5))
    """Share of the documents that is held out for the report."""
    dtype: Dtype = "bfloat16"
    """Type of the frozen model and of the product. Trained weights are float32."""
    device: str = field(
        default="auto",
        metadata=matching(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N"),
    )
    """`auto`: a GPU if torch finds one, else the CPU; `cpu`; `cuda` or `cuda:N`."""
    spread_target: bool = False
    """Spread the frozen target over all GPUs and the RAM, as accelerate's `device_map: auto` does.
    For one process, and a target that does not fit one GPU; not for `medusa2`."""
    autocast: Literal["auto", "bfloat16", "none"] = "auto"
    """Mixed precision of the losses. `auto`: bfloat16 on a GPU, none on the CPU."""
    hidden_states: Literal["disk", "on_the_fly"] = "disk"
    """Heads, ReDrafter, EAGLE-3: `disk` computes the target's hidden states once and keeps them.
    `on_the_fly` computes them in every step, which needs no disk."""
    micro_batch: int = field(default=0, metadata=at_least(0))
    """Positions of a batch that are computed together; their gradients add up to those of the
    batch. 0: the whole batch."""
    gradient_checkpointing: bool = False
    """`draft` and `medusa2`: compute activations a second time instead of keeping them."""
    seed: int = field(default=0, metadata=at_least(0))
    """Seed of the training."""
    out: str | None = None
    """Folder of the products. Default: `engines/NAME/train`, with a folder per kind: `medusa`,
    `redrafter`, `eagle3`, `draft`."""
    medusa: MedusaTraining = MedusaTraining()
    redrafter: ReDrafterTraining = ReDrafterTraining()
    eagle3: Eagle3Training = Eagle3Training()
    draft: DraftTraining = DraftTraining()
