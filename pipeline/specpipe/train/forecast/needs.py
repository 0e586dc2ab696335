"""The bytes that a training needs on the disk and in memory, from facts and formulas.

Weights, gradients, moments and stored states are exact. Activations are counted layer by layer from
the sizes of a Llama layer; what torch frees late is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from specpipe.config.training import TrainOptions
from specpipe.core.model import ModelConfig
from specpipe.train.accuracy import CHUNK
from specpipe.train.forecast.amounts import Amounts
from specpipe.train.forecast.kinds import BYTES, FLOAT, Work
from specpipe.train.text import mean_documents

OF_WEIGHT = 4 * FLOAT  # a trained weight, its gradient and AdamW's two moments
PROGRAM = 600 << 20  # torch and transformers, loaded
ON_GPU = 700 << 20  # CUDA's context, cuBLAS, and the allocator's slack
_DOCUMENTS = 8  # of which hidden states are computed together
_ROWS = 4096  # positions of the hold-out whose features are in memory together
_WORD = 8  # bytes of a token id


@dataclass(frozen=True)
class TrainingNeeds:
    """The bytes of a training, by what takes them; of the phases, the largest counts."""

    disk: Mapping[str, int]
    weights: Mapping[str, int]  # where the training computes, all the time
    phases: Mapping[str, int]  # there, one after the other
    host: Mapping[str, int]  # in RAM in addition, if the training computes on a GPU

    @property
    def disk_bytes(self) -> int:
        """All files together."""
        return sum(self.disk.values())

    @property
    def device_bytes(self) -> int:
        """The most that is in the memory of the device at a time."""
        return sum(self.weights.values()) + max(self.phases.values())

    @property
    def host_bytes(self) -> int:
        """The most that is in RAM, if the training computes on a GPU."""
        return sum(self.host.values())

    @property
    def largest_phase(self) -> str:
        """The phase that decides `device_bytes`."""
        return max(self.phases, key=lambda name: self.phases[name])


def needs_of(
    train: TrainOptions, work: Work, model: ModelConfig, amounts: Amounts, *, on_gpu: bool
) -> TrainingNeeds:
    """Return what a training needs; `on_gpu`: its device is not the RAM."""
    target = model.num_parameters * BYTES[train.dtype]
    text = amounts.tokens * (1 + _WORD * (3 + 2 * work.outputs))
    host = {"the program": PROGRAM, "text": text}
    return TrainingNeeds(
        _disk(train, work, amounts),
        {
            "the target": target,
            "trained weights, gradients and moments": work.trained * OF_WEIGHT,
            "a copy of the target": work.frozen_copy * FLOAT,
            **({"CUDA": ON_GPU} if on_gpu else host),
        },
        {
            "hidden states": _forward(train, work, model, _DOCUMENTS * train.sequence_length),
            "answers": _answers(train, model, amounts),
            "a training step": _step(train, work, model, amounts, on_gpu=on_gpu),
            "the evaluation": _evaluation(train, work, model),
        },
        {**host, "the target, while it is loaded": target},
    )


def _disk(train: TrainOptions, work: Work, amounts: Amounts) -> dict[str, int]:
    rows = amounts.tokens if work.every_row else amounts.positions
    if work.runs_target:  # on the fly: only those of the hold-out
        rows = round(rows * train.hold_out)
    return {
        "hidden states": rows * work.stored * work.stored_bytes,
        "two checkpoints": 2 * work.trained * 3 * FLOAT,
        "the product": work.product,
        "answers": amounts.prompts * 2000,  # lines of JSON
    }


def _forward(train: TrainOptions, work: Work, model: ModelConfig, rows: int) -> int:
    """Return the activations of the frozen target, of which one layer's are there at a time."""
    kept = (model.num_hidden_layers + work.stored // model.hidden_size) * work.every_row
    inner = _layer_values(model) + (kept + 2) * model.hidden_size
    return rows * inner * BYTES[train.dtype]


def _layer_values(model: ModelConfig) -> int:
    """Count the values of a token that a layer computes."""
    query = model.num_attention_heads * model.head_size
    keys = model.num_key_value_heads * model.head_size
    inner = 4 * model.expert_size * (model.moe.top_k if model.moe else 1)
    return 6 * model.hidden_size + 3 * query + 4 * keys + inner


def _answers(train: TrainOptions, model: ModelConfig, amounts: Amounts) -> int:
    how = train.self_distillation
    if how is None or how.endpoint is not None:
        return 0
    width, batch = BYTES[train.dtype], how.batch_size
    length = amounts.longest_prompt + how.max_tokens
    cache = batch * model.kv_bytes(length, bytes_per_value=width)
    prefill = batch * amounts.longest_prompt * _layer_values(model) * width
    return cache + cache // model.num_hidden_layers + prefill + batch * model.vocab_size * 3 * FLOAT


def step_positions(train: TrainOptions, work: Work, amounts: Amounts) -> int:
    """Return how many positions are computed together in a step, at most.

    Documents are never divided, and are padded to the longest of those that are computed together.
    """
    most = work.schedule.batch_tokens
    if work.every_row:  # document by document
        return train.sequence_length
    if work.whole_documents:
        most = train.sequence_length * mean_documents(most, amounts.documents, amounts.tokens)
        return max(train.sequence_length, min(train.micro_batch or most, most))
    return min(train.micro_batch or most, most)


def _step(
    train: TrainOptions, work: Work, model: ModelConfig, amounts: Amounts, *, on_gpu: bool
) -> int:
    rows, width = step_positions(train, work, amounts), BYTES[train.dtype]
    total = rows * (_drafts(work, model, width) + work.spoken * (3 * FLOAT + width))
    if work.layers:
        total += rows * _differentiated(train, work, model, on_gpu=on_gpu)
    if work.runs_target:
        total += _forward(train, work, model, rows)
    if work.candidates < model.vocab_size:
        total += work.outputs * work.candidates * model.hidden_size * width
    return total


def _drafts(work: Work, model: ModelConfig, width: int) -> int:
    """Return the bytes of a position's features, logits and distributions until their gradient."""
    kept, passing = (3 * FLOAT, width + 4 * FLOAT) if work.soft else (FLOAT, width + 2 * FLOAT)
    logits = work.candidates * (work.outputs * kept + passing)
    layers = max(1, work.multiplied // (work.outputs * model.hidden_size**2))
    features = 0 if work.layers else work.outputs * 3 * layers * model.hidden_size * FLOAT
    return logits + features + 2 * model.hidden_size * FLOAT


def _differentiated(train: TrainOptions, work: Work, model: ModelConfig, *, on_gpu: bool) -> int:
    """Return the bytes of a token's activations that the backward pass of a whole model reads."""
    one = _layer_values(model) * (3 if on_gpu else FLOAT)  # on a GPU, most are in bfloat16
    if work.every_row:  # attention of a drafter's layer, whose scores are written out
        return work.layers * (one + 3 * FLOAT * model.num_attention_heads * train.sequence_length)
    if train.gradient_checkpointing:
        return one + work.layers * model.hidden_size * FLOAT
    return work.layers * one


def _evaluation(train: TrainOptions, work: Work, model: ModelConfig) -> int:
    """Return the bytes of judging: logits of a few rows over all tokens, in float32."""
    widened = work.on_positions and train.dtype != "float32"
    output = model.vocab_size * model.hidden_size * FLOAT if widened else 0
    logits = CHUNK * model.vocab_size * (FLOAT + 1)
    features = _ROWS * model.hidden_size * FLOAT * (1 + 3 * work.outputs) if work.stored else 0
    return output + logits + features
