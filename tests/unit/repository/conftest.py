"""Runs of every method, packaged as for GPUs and served by strict stand-ins."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.packaged_gpu import BASE, METHODS, Serve, Served, package


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that packages a run of a method once."""

    @cache
    def run(method: str, release: str, streams: bool) -> Path:
        engine = replace(BASE.engine, tp_size=1, pp_size=1, tensorrt_llm=release)
        serving = replace(BASE.serving, decoupled=streams)
        speculation = METHODS[method]
        config = replace(BASE, engine=engine, serving=serving, speculation=speculation)
        return package(config, release, tmp_path_factory.mktemp("run"))

    return run


@pytest.fixture
def serve(packaged: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Return a function that serves a run of a method."""

    def run(method: str, release: str = "1.2.1", *, streams: bool = True) -> Served:
        return Served(packaged(method, release, streams), monkeypatch)

    return run
