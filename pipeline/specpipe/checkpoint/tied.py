"""Decides whether the output layer is the embedding: by the tensors that are there, as they are.

transformers 5 ties two equal tables, or one that is missing, and keeps a head that differs,
whatever `tie_word_embeddings` states (`tie_weights`, modeling_utils.py).
"""

from dataclasses import replace

from specpipe.checkpoint.families import Family, HfConfig, TensorPlan
from specpipe.checkpoint.source import Source, TensorReader, read_tensors
from specpipe.checkpoint.stream import row_steps
from specpipe.core.model import ModelConfig

_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")


def settle_head(
    reader: TensorReader, family: Family, hf: HfConfig, model: ModelConfig, *, whole: bool
) -> ModelConfig:
    """Return the facts of a model, with its head tied or not as its tensors are.

    With `whole` both tables are compared to their ends, else only their first rows. A head that is
    missing is tied unless config.json states that it is not.
    """
    embedding, head = _tables(family, model)
    if head not in reader.names():
        tied = model.tie_word_embeddings or hf.get("tie_word_embeddings") is None
    else:
        tied = model.tie_word_embeddings and _equal(reader, embedding, head, whole=whole)
    return replace(model, tie_word_embeddings=tied)


def head_name(family: Family, model: ModelConfig) -> str:
    """Return the name of the output layer in Hugging Face's files, tied or not."""
    return _tables(family, model)[1]


def _tables(family: Family, model: ModelConfig) -> tuple[str, str]:
    plans = family.tensors(replace(model, tie_word_embeddings=False))
    return _source(plans, "transformer.vocab_embedding.weight"), _source(plans, "lm_head.weight")


def _source(plans: list[TensorPlan], name: str) -> str:
    return next(plan.sources[0] for plan in plans if plan.name == name)


def _equal(reader: TensorReader, one: str, other: str, *, whole: bool) -> bool:
    import torch

    shape = reader.shape(other)
    if one not in reader.names() or reader.shape(one) != shape:
        return False
    for begin, end in row_steps(shape):
        first, second = reader.rows(one, begin, end), reader.rows(other, begin, end)
        if not torch.equal(first.float(), second.float()):
            return False
        if not whole:
            break
    return True


def lacks_head(source: Source) -> bool:
    """Tell whether a folder has no output layer and does not state whether it is the embedding."""
    if source.hf_config.get("tie_word_embeddings") is not None:
        return False
    with read_tensors(source.weights) as reader:
        return not set(_HEADS) & reader.names()
