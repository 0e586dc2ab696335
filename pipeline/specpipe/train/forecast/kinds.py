"""What each kind of training holds in memory and writes, as facts that estimates are made from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from specpipe.checkpoint.eagle3_format import usual_layers
from specpipe.config.training import DrafterTraining, Schedule, TrainOptions
from specpipe.core.model import ModelConfig

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
FLOAT, _HALF = 4, 2


@dataclass(frozen=True)
class Work:
    """One training of a target, as numbers."""

    schedule: Schedule
    trained: int  # weights with gradients and moments, in float32
    frozen_copy: int  # float32 weights of a copy of the target that get no gradients
    layers: int  # of a model that is differentiated as a whole
    spoken: int  # tokens of which this model's own output has logits; 0: it does not learn
    outputs: int  # draft tokens of a position, each with logits of its own
    candidates: int  # tokens of which a draft token has logits
    soft: bool  # it learns distributions
    multiplied: int  # weights that a position is multiplied with, forwards, that are differentiated
    stored: int  # values of a row of hidden states on the disk; 0: none are stored
    stored_bytes: int  # of one value
    every_row: bool  # rows of all tokens are stored, not of learned positions only
    whole_documents: bool  # a batch consists of documents, not of positions
    runs_target: bool  # in every step
    product: int  # bytes

    @property
    def on_positions(self) -> bool:
        """Whether it learns from last hidden states, each by itself."""
        return self.stored > 0 and not self.every_row


def work_of(kind: str, train: TrainOptions, model: ModelConfig) -> Work:
    """Return the facts of `train KIND` for a target; KIND as in `specpipe train`."""
    return _KINDS[kind](train, model)


def _medusa(train: TrainOptions, model: ModelConfig) -> Work:
    options, width = train.medusa, model.hidden_size
    own = 0 if options.share_output else model.vocab_size * width
    heads = options.num_heads * (options.num_layers * width * (width + 1) + own)
    if options.stage == "medusa1":
        return _on_features(train, model, options, heads, heads, options.num_heads)
    rank = options.lora_rank
    changed = _lora(model, rank) if rank else model.num_parameters
    joint = _on_features(train, model, options, heads, heads, options.num_heads)
    return Work(
        options.schedule,
        trained=heads + changed,
        frozen_copy=model.num_parameters if rank else 0,
        layers=model.num_hidden_layers,
        spoken=model.vocab_size,
        outputs=options.num_heads,
        candidates=joint.candidates,
        soft=False,
        multiplied=heads + model.num_parameters,
        stored=0,
        stored_bytes=0,
        every_row=False,
        whole_documents=True,
        runs_target=False,
        product=heads * _HALF + model.num_parameters * BYTES[train.dtype],
    )


def _redrafter(train: TrainOptions, model: ModelConfig) -> Work:
    options, width = train.redrafter, model.hidden_size
    layers = 4 + options.num_layers  # recurrence: 2, projection of two inputs: 2
    net = layers * width * width + (2 + options.num_layers) * width
    return _on_features(train, model, options, net, net * options.draft_len, options.draft_len)


def _on_features(
    train: TrainOptions,
    model: ModelConfig,
    options: DrafterTraining,
    trained: int,
    multiplied: int,
    outputs: int,
) -> Work:
    """Return the facts of a drafter on the last hidden states of a frozen target."""
    sampled = options.loss_vocabulary + options.loss_samples
    stored = train.hidden_states == "disk"
    return Work(
        options.schedule,
        trained=trained,
        frozen_copy=0,
        layers=0,
        spoken=0,
        outputs=outputs,
        candidates=min(sampled, model.vocab_size) if options.loss_vocabulary else model.vocab_size,
        soft=options.soft_labels,
        multiplied=multiplied,
        stored=model.hidden_size,
        stored_bytes=_HALF,
        every_row=False,
        whole_documents=not stored,
        runs_target=not stored,
        product=trained * _HALF,
    )


def _eagle3(train: TrainOptions, model: ModelConfig) -> Work:
    options, width = train.eagle3, model.hidden_size
    read = len(options.target_layer_ids or usual_layers(model.num_hidden_layers))
    query = model.num_attention_heads * model.head_size
    keys = 2 * model.num_key_value_heads * model.head_size
    layer = 2 * width * (query + keys) + query * width + 3 * width * model.intermediate_size
    tokens = min(options.draft_vocab_size, model.vocab_size)
    net = read * width * width + layer + (4 + tokens) * width
    return Work(
        options.schedule,
        trained=net,
        frozen_copy=0,
        layers=options.ttt_steps,
        spoken=0,
        outputs=options.ttt_steps,
        candidates=tokens,
        soft=True,
        multiplied=net * options.ttt_steps,
        stored=(read + 1) * width,
        stored_bytes=BYTES[train.dtype],
        every_row=True,
        whole_documents=True,
        runs_target=train.hidden_states == "on_the_fly",
        product=net * BYTES[train.dtype],
    )


def _draft(train: TrainOptions, model: ModelConfig) -> Work:
    options, total = train.draft, model.num_hidden_layers
    layers = len(options.layers) or options.num_layers or max(1, total // 3)
    tables = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    small = tables + (model.num_parameters - tables) * layers // total
    return Work(
        options.schedule,
        trained=small,
        frozen_copy=0,
        layers=layers,
        spoken=0,
        outputs=1,
        candidates=model.vocab_size,
        soft=True,
        multiplied=small,
        stored=0,
        stored_bytes=0,
        every_row=False,
        whole_documents=True,
        runs_target=True,
        product=small * BYTES[train.dtype],
    )


def _lora(model: ModelConfig, rank: int) -> int:
    """Count the weights of low-rank updates of every linear layer of attention and MLP."""
    query = model.num_attention_heads * model.head_size
    keys = model.num_key_value_heads * model.head_size
    width, inner = model.hidden_size, model.expert_size
    attention = 2 * (width + query) + 2 * (width + keys)
    mlp = (3 if model.arithmetic.gated_mlp else 2) * (width + inner) * max(1, model.num_experts)
    return model.num_hidden_layers * rank * (attention + mlp)


_KINDS: Mapping[str, Callable[[TrainOptions, ModelConfig], Work]] = {
    "medusa": _medusa,
    "redrafter": _redrafter,
    "eagle3": _eagle3,
    "draft": _draft,
}
