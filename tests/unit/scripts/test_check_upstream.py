"""The cases of `scripts/check-upstream`, which itself needs a checkout of TensorRT-LLM."""

from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.families import WORLDS


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend("scripts")
    from upstream_check import cases

    return cases


def test_every_case_has_a_name_and_a_model_that_can_be_made(script: ModuleType) -> None:
    from upstream_check.models import MODELS

    cases = script.cases()
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    for case in cases:
        if "/" in case.model:
            architecture, variant = case.model.split("/")
            assert variant in WORLDS[architecture].variants, case
        else:
            assert case.model.split(":")[-1] in MODELS, case


def test_the_docs_have_the_number_of_cases(script: ModuleType) -> None:
    total = len(script.cases())
    assert f"all {total} cases agree" in Path("docs/gpu.md").read_text()
    assert f"[{total} tiny models]" in Path("README.md").read_text()
    assert f"converts {total} tiny models" in Path("CONTRIBUTING.md").read_text()
