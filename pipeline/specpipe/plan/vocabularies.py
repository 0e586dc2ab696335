"""The vocabularies of a run's models, as their tokenizers have them.

Not here: what a difference rules out; see `compatibility`.
"""

from specpipe.checkpoint.source import Source
from specpipe.checkpoint.tokenizer import read_vocabulary, special_ids
from specpipe.core.contracts import Role
from specpipe.core.errors import SpecpipeError
from specpipe.core.model import ModelConfig
from specpipe.plan.compatibility import TokenTable, VocabularyDifference, differences
from specpipe.plan.resolve import Resolved


def compare_draft(found: Resolved) -> list[VocabularyDifference]:
    """Return the differences between the vocabularies of the draft and the target."""
    if "draft" not in found.sources or not all(m.vocab_size for m in found.models.values()):
        return []
    roles: tuple[Role, Role] = ("target", "draft")
    target, draft = (_vocabulary(found.sources[r], found.models[r]) for r in roles)
    return differences(target, draft)


def _vocabulary(source: Source | None, model: ModelConfig) -> TokenTable:
    if source is None:
        return TokenTable(model.vocab_size)
    try:
        tokens = read_vocabulary(source)
    except SpecpipeError:  # `check_tokenizer` refuses it
        return TokenTable(model.vocab_size)
    return TokenTable(model.vocab_size, tokens, special_ids(source))
