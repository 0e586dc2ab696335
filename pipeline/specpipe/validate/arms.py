"""The arms of a validation (the configurations that are compared), and their requests."""

from dataclasses import dataclass

from specpipe.config.run_config import RunConfig
from specpipe.core.endpoint import Model
from specpipe.plan.gates import plain_by, speculates
from specpipe.validate.trials import Arm


@dataclass(frozen=True)
class ServedArm:
    """The request options of an arm."""

    arm: Arm
    num_draft_tokens: int | None = None  # 0: the request turns speculation off


def served_arms(config: RunConfig, text: Model) -> list[ServedArm]:
    """Return the arms of the run's own server."""
    if not speculates(config):
        return [ServedArm("plain")]
    plain = [ServedArm("plain", 0)] if plain_by(config, text) == "request" else []
    return [*plain, ServedArm("speculative")]
