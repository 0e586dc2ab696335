"""Checks the drafter of a run for a backend that reads it as it is, as of method eagle3.

Not here: downloads; a drafter that is only on the hub is not looked at. A backend that converts
models checks the drafter with them (`Eagle3Source.check`).
"""

from collections.abc import Iterator

from specpipe.checkpoint.eagle3 import open_eagle3
from specpipe.checkpoint.finding import is_hub_id, named_by
from specpipe.config.files import find_file
from specpipe.config.run_config import RunConfig
from specpipe.config.speculation import Eagle3, WithUpstreamDraft
from specpipe.core.errors import ConfigError, Rejection
from specpipe.core.model import ModelConfig

_KEY = "speculation.draft.model"


def check_eagle3(config: RunConfig, target: ModelConfig) -> list[Rejection]:
    """Return every reason why the run's drafter cannot draft for its target.

    The shapes of EAGLE-3 checkpoints are compared with the target's.

    Raises ConfigError if it is neither on disk nor an id of the hub, and what `open_eagle3` raises.
    """
    if not isinstance(config.speculation, WithUpstreamDraft):
        return []
    model = config.speculation.draft.model
    path = find_file(model, config)
    if path is None and not is_hub_id(model):
        raise ConfigError(
            f"{config.places.get(_KEY, config.path)}: '{_KEY}' is {model!r}: no such folder",
            hint="give a folder or a Hugging Face id (owner/name); paths are relative to the "
            "working directory or to the config file",
        )
    if path is None or not isinstance(config.speculation, Eagle3):
        return []
    with named_by(config, _KEY):
        drafter = open_eagle3(path)
        return [*drafter.misfits(target), *_check_ranks(config, drafter.draft_vocab_size)]


def _check_ranks(config: RunConfig, tokens: int) -> Iterator[Rejection]:
    """Refuse ranks that the drafter's vocabulary does not divide by; the server finds it late."""
    ranks, traits = config.engine.tp_size, config.engine.traits
    if not traits.pads_draft_vocabulary and ranks and tokens % ranks:
        yield Rejection(
            f"{config.speculation.method}: the drafter has a vocabulary of {tokens}, which "
            f"{traits.title} does not pad to engine.tp_size {ranks}",
            "set engine.tp_size to a number that divides it",
        )
