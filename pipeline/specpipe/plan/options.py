"""Refuse keys of `serving` and methods that the run's backend or target lacks, and its options."""

from collections.abc import Iterator

from specpipe.config.backends import BACKENDS
from specpipe.config.run_config import RunConfig
from specpipe.config.upstream_methods import MultiToken
from specpipe.core.errors import Rejection
from specpipe.core.paths import is_plain
from specpipe.engine.fronts.table import TRITON
from specpipe.runtime.assembly import load_backend


def check_options(config: RunConfig, next_token_layers: int = 0) -> Iterator[Rejection]:
    """Refuse options that the backend ignores and methods that it does not support.

    `next_token_layers` is the number of the target's layers for multi-token prediction.
    """
    place = config.serving.repository_path
    if place is not None and not is_plain(place):
        yield Rejection(
            f"serving.repository_path is {place!r}: Triton starts its models through a shell, "
            "without quotes, and they read paths as ASCII",
            "use letters, digits and ._/-",
        )
    yield from _check_front(config)
    if isinstance(config.speculation, MultiToken) and not next_token_layers:
        yield Rejection(
            f"{config.target.model} has no layers for multi-token prediction "
            "(num_nextn_predict_layers in config.json)",
            f"use method: {config.engine.traits.methods}",
        )
    yield from load_backend(config.engine.backend).check_run(config)


_TRITONS = (
    "decoupled", "max_queue_size", "loop", "instances", "repository_path", "spawn_processes", "tls",
    "openai",
)  # fmt: skip


def _check_front(config: RunConfig) -> Iterator[Rejection]:
    """Refuse another front than Triton for models that only Triton serves, and Triton's keys."""
    front, backend, known = config.serving.front, config.engine.backend, config.engine.traits.fronts
    if front not in known and known == (TRITON,):
        others = [name for name, traits in BACKENDS.items() if front in traits.fronts]
        yield Rejection(
            f"serving.front is {front}, which serves models without engines; backend {backend} is "
            "served by Triton",
            f"remove serving.front, or use backend: {' or '.join(others)}",
        )
        return
    if front not in known:
        yield Rejection(
            f"serving.front is {front}, which does not serve backend {backend}",
            "remove serving.front",
        )
        return
    if front == TRITON:
        return
    for key in _TRITONS:
        if f"serving.{key}" in config.places:
            yield Rejection(
                f"serving.{key} is a key of Triton, and serving.front is {front}",
                "encrypt with a proxy before the server"
                if key == "tls"
                else f"remove serving.{key}",
            )
