"""The `train:` section of a run's YAML: what heads and drafts learn from, and how."""

from dataclasses import dataclass, field
from typing import Literal

from specpipe.model import Dtype
from specpipe.records import at_least, between


@dataclass(frozen=True)
class SelfDistillation:
    """The target answers prompts, and its answers are the text that is learned.

    Beside those of a file it can answer prompts that it makes up itself: they are like the ones it
    was trained on, and so of many kinds (Xu et al. 2024, "Magpie", arXiv 2406.08464).
    """

    prompts: str | None = None  # JSON lines with a "prompt" key
    invented_prompts: int = field(default=0, metadata=at_least(0))  # made up by the target
    max_tokens: int = field(default=256, metadata=at_least(1))
    temperature: float = field(default=0.0, metadata=between(0, 10))  # 0: the most likely token
    batch_size: int = field(default=32, metadata=at_least(1))


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: AdamW, linear warm-up, cosine down to zero."""

    epochs: float = field(default=2.0, metadata=between(0.001, 1000))
    batch_tokens: int = field(default=1024, metadata=at_least(1))
    learning_rate: float = field(default=1e-3, metadata=between(1e-8, 1))
    warm_up: float = field(default=0.1, metadata=between(0, 1))  # share of the steps
    checkpoint_every: int = field(default=100, metadata=at_least(1))  # steps; also the curve's


@dataclass(frozen=True)
class GuesserTraining:
    """What the training of heads and of a recurrent drafter has in common.

    Guess k has the weight `head_loss_decay` to the power k. With `soft_labels` it learns the whole
    distribution that the target has at its place, not only the token that came (Hinton et al. 2015,
    arXiv 1503.02531): the same text teaches more. Not for medusa2, whose target changes meanwhile.
    """

    soft_labels: bool = False
    head_loss_decay: float = field(default=0.8, metadata=between(0, 1))
    loss_vocabulary: int = field(default=0, metadata=at_least(0))  # frequent tokens; 0: all
    loss_samples: int = field(default=1024, metadata=at_least(1))  # drawn from the other tokens
    schedule: Schedule = Schedule()


@dataclass(frozen=True)
class MedusaTraining(GuesserTraining):
    """Heads on the target's last hidden state (Cai et al. 2024, arXiv 2401.10774)."""

    stage: Literal["medusa1", "medusa2"] = "medusa1"  # medusa2 trains the backbone, too
    num_heads: int = field(default=4, metadata=between(1, 16))
    num_layers: int = field(default=1, metadata=between(1, 8))
    share_output: bool = True  # the target's LM head, frozen; False: a copy a head, trained
    lora_rank: int = field(default=0, metadata=between(0, 1024))  # medusa2; 0: train every weight
    head_lr_ratio: float = field(default=4.0, metadata=between(0.001, 1000))  # medusa2
    heads_loss_weight: float = field(default=0.2, metadata=between(0, 100))  # medusa2, at the end


@dataclass(frozen=True)
class ReDrafterTraining(GuesserTraining):
    """A recurrent drafter on the target's last hidden state (Zhang et al. 2024, arXiv 2403.09919).

    Its output layer is the target's LM head, frozen, and its residual blocks are as wide.
    """

    num_layers: int = field(default=2, metadata=between(1, 8))
    draft_len: int = field(default=4, metadata=between(1, 16))  # guesses in a row to learn


@dataclass(frozen=True)
class DraftTraining:
    """A copy of the target with fewer layers, taught to give the target's distribution."""

    num_layers: int | None = field(default=None, metadata=at_least(1))  # None: a third
    layers: tuple[int, ...] = ()  # these instead of evenly spread ones
    temperature: float = field(default=1.0, metadata=between(0.01, 100))  # of both distributions
    schedule: Schedule = Schedule(learning_rate=3e-4)


@dataclass(frozen=True)
class TrainOptions:
    """Text, and what is made from it."""

    files: tuple[str, ...] = ()  # *.jsonl: chats with "messages"; anything else: plain text
    self_distillation: SelfDistillation | None = None
    sequence_length: int = field(default=512, metadata=at_least(8))  # longer documents are cut
    hold_out: float = field(default=0.1, metadata=between(0.001, 0.5))  # share of the documents
    dtype: Dtype = "bfloat16"  # of the frozen model and of products; learned weights are float32
    seed: int = field(default=0, metadata=at_least(0))
    out: str | None = None  # None: engines/<name>/train
    medusa: MedusaTraining = MedusaTraining()
    redrafter: ReDrafterTraining = ReDrafterTraining()
    draft: DraftTraining = DraftTraining()
