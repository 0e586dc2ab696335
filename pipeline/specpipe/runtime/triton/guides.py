"""Read the tensors of guided decoding, whose names and values are upstream's. No Triton here."""

from specpipe.core.errors import ConfigError
from specpipe.core.guide import Guide, guide_of
from specpipe.runtime.triton.requests import Tensors, texts

KIND, TEXT = "guided_decoding_guide_type", "guided_decoding_guide"
SUPPORTED = frozenset({KIND, TEXT})


def read_guide(tensors: Tensors) -> Guide | None:
    """Return what the answer must match; raises ConfigError for a guide that cannot be used."""
    kind, text = (_only(tensors, name) for name in (KIND, TEXT))
    if kind:
        return guide_of(kind, text)
    if text:
        raise ConfigError(f"{TEXT} is given without {KIND}")
    return None


def _only(tensors: Tensors, name: str) -> str:
    found = texts(tensors, name)
    if len(found) > 1:
        raise ConfigError(f"{name} has {len(found)} texts: must have one")
    return found[0] if found else ""
