"""The arms of a validation: what answers each, and what its requests contain."""

from dataclasses import dataclass
from typing import Literal

from specpipe.config import RunConfig
from specpipe.endpoint import Model
from specpipe.validate.trials import Arm

Plain = Literal["request", "build", "none"]


@dataclass(frozen=True)
class ServedArm:
    """How the requests of an arm are made."""

    arm: Arm
    num_draft_tokens: int | None = None  # 0: the server is asked not to speculate


def plain_by(config: RunConfig, text: Model) -> Plain:
    """Return what decodes plainly: a request to the same server, an engine of its own, or nothing.

    An engine that speculates in every request has no plain arm, unless one is built for it.
    """
    if config.validate.baseline is not None:
        return config.validate.baseline
    return "request" if text.can_decode_plainly else "none"


def speculates(config: RunConfig) -> bool:
    """Tell whether there is anything to compare plain decoding with."""
    return config.speculation.num_draft_tokens > 0


def served_arms(config: RunConfig, text: Model) -> list[ServedArm]:
    """Return the arms that the run's own server answers."""
    if not speculates(config):
        return [ServedArm("plain")]
    plain = [ServedArm("plain", 0)] if plain_by(config, text) == "request" else []
    return [*plain, ServedArm("speculative")]
