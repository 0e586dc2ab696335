"""The arms of a validation (the configurations that are compared), and their requests."""

from dataclasses import dataclass
from typing import Literal

from specpipe.config import RunConfig
from specpipe.endpoint import Model
from specpipe.validate.trials import Arm

Plain = Literal["request", "build", "none"]


@dataclass(frozen=True)
class ServedArm:
    """The request options of an arm."""

    arm: Arm
    num_draft_tokens: int | None = None  # 0: the request turns speculation off


def plain_by(config: RunConfig, text: Model) -> Plain:
    """Return what decodes without speculation: a request to the same server, a baseline or nothing.

    An engine that speculates in every request has no plain arm unless a baseline is built for it.
    """
    if config.validate.baseline is not None:
        return config.validate.baseline
    return "request" if text.can_decode_plainly else "none"


def speculates(config: RunConfig) -> bool:
    """Tell whether the run speculates; only then can it be compared with plain decoding."""
    return config.speculation.num_draft_tokens > 0


def served_arms(config: RunConfig, text: Model) -> list[ServedArm]:
    """Return the arms of the run's own server."""
    if not speculates(config):
        return [ServedArm("plain")]
    plain = [ServedArm("plain", 0)] if plain_by(config, text) == "request" else []
    return [*plain, ServedArm("speculative")]
