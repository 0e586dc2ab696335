"""A command opens every model once, and again only if its files have changed since."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from specpipe.checkpoint.convert import survey
from specpipe.checkpoint.medusa import open_heads
from specpipe.checkpoint.source import Source, open_source
from specpipe.config.run_config import read_config
from specpipe.config.speculation import NoSpeculation
from specpipe.core.artifacts import Workspace
from specpipe.core.model import Dtype, ModelConfig
from specpipe.plan.opened import OpenedModels
from specpipe.run.run import Run
from specpipe.run.stages import build, require_repository, status
from tests.helpers.models import make_heads

WriteConfig = Callable[..., Path]
ONCE = {"source": 1, "headers of source": 1, "heads": 1}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> "Counter[str]":
    """Count the models that are opened, by their names, and the surveys of their headers."""
    names: Counter[str] = Counter()

    def counting(opening: Callable[[Path], object]) -> Callable[[Path], object]:
        def call(path: Path) -> object:
            names[path.name] += 1
            return opening(path)

        return call

    def surveying(source: Source, dtype: Dtype) -> ModelConfig:
        names[f"headers of {source.path.name}"] += 1
        return survey(source, dtype)

    monkeypatch.setattr("specpipe.checkpoint.finding.open_source", counting(open_source))
    monkeypatch.setattr("specpipe.plan.opened.open_heads", counting(open_heads))
    monkeypatch.setattr("specpipe.plan.opened.survey", surveying)
    return names


@pytest.fixture
def source(tiny: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny model with heads next to it."""
    make_heads(tmp_path / "heads", seed=5)
    return Path(shutil.copytree(tiny, tmp_path / "source"))


@pytest.fixture
def make_run(write_config: WriteConfig, source: Path, tmp_path: Path) -> Callable[[], Run]:
    """Return a function that reads a run with heads and a baseline, as every command does."""
    speculation = {"method": "medusa", "heads": str(tmp_path / "heads")}
    target, validate = {"model": str(source)}, {"baseline": "build"}
    path = write_config(target=target, speculation=speculation, validate=validate)

    def make() -> Run:
        config = read_config(path)
        return Run(config, Workspace(tmp_path / "work", config.name))

    return make


def test_a_build_opens_every_model_once_for_the_run_and_its_baseline(
    make_run: Callable[[], Run], opened: "Counter[str]"
) -> None:
    assert not any(result.fresh for result in build(make_run()))
    assert opened == ONCE
    opened.clear()
    run = make_run()
    assert all(result.fresh for result in [*build(run), *status(run)])
    require_repository(run)
    assert opened == ONCE


def test_a_variant_of_a_run_opens_nothing_again(
    make_run: Callable[[], Run], opened: "Counter[str]"
) -> None:
    run = make_run()
    assert run.plan.models and run.variant(run.config).plan == run.plan
    plain = run.variant(run.config.baseline)
    assert plain.plan.config.speculation == NoSpeculation()
    assert plain.workspace.name == plain.config.name
    assert opened == ONCE


def test_a_model_that_has_changed_since_is_opened_again(
    make_run: Callable[[], Run], source: Path
) -> None:
    run, models = make_run(), OpenedModels()
    first = models.source(run.config, "target")
    assert models.source(run.config, "target") is first
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 0]}))
    second = models.source(run.config, "target")
    assert second is not first and source / "generation_config.json" in second.stamps
    assert models.fetched(run.config, "target", pytest.fail) is second


def test_heads_that_have_changed_since_are_opened_again(
    make_run: Callable[[], Run], tmp_path: Path
) -> None:
    config, models = make_run().config, OpenedModels()
    first = models.drafter(config, "target")
    assert models.drafter(config, "target") is first
    make_heads(tmp_path / "heads", seed=5, heads=2)
    second = models.drafter(config, "target")
    assert second is not None and second.summary.startswith("2 heads")
