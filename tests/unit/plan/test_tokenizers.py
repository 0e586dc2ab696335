"""Plans report what `convert` would refuse in a tokenizer, for every model of a run."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import Unsupported
from specpipe.plan.make_plan import make_plan, require_buildable
from specpipe.plan.plan import Plan
from specpipe.run.run import Run


@pytest.fixture
def bare(tiny: Path, tmp_path: Path) -> Path:
    """Return the tiny model without a tokenizer."""
    folder = Path(shutil.copytree(tiny, tmp_path / "bare"))
    for file in folder.glob("*token*"):
        file.unlink()
    return folder


@pytest.fixture
def plan(write_config: Callable[..., Path], tmp_path: Path) -> Callable[..., Plan]:
    def planned(**sections: object) -> Plan:
        config = read_config(write_config(**sections))
        return make_plan(config, Workspace(tmp_path / "work", config.name))

    return planned


REASON = "no usable tokenizer: the folder has no tokenizer.json"


def test_a_target_without_a_tokenizer_is_refused(plan: Callable[..., Plan], bare: Path) -> None:
    found = plan(target={"model": str(bare)})
    assert [REASON in r.reason and str(bare) in r.reason for r in found.rejections] == [True]
    with pytest.raises(Unsupported, match=REASON):
        require_buildable(found)


def test_a_draft_without_a_tokenizer_is_refused_with_all_other_reasons(
    plan: Callable[..., Plan], bare: Path
) -> None:
    found = plan(
        speculation={"method": "draft_model", "draft": {"model": str(bare)}},
        engine={"backend": "openvino", "max_input_len": 100, "max_seq_len": 200, "gpu": "L4"},
    )
    reasons = [rejection.reason for rejection in found.rejections]
    assert sum(REASON in reason for reason in reasons) == 1 and len(reasons) > 1


def test_what_is_not_converted_needs_no_tokenizer(plan: Callable[..., Plan], bare: Path) -> None:
    engine = {"backend": "llmapi", "gpu": "H100-SXM", "dtype": "bfloat16"}
    found = plan(target={"model": str(bare)}, engine=engine)
    assert not [r for r in found.rejections if "tokenizer" in r.reason]


def test_a_path_that_triton_cannot_take_is_refused_with_its_line(
    plan: Callable[..., Plan],
) -> None:
    found = plan(serving={"repository_path": "/models/mein modell"})
    (reason,) = [r.reason for r in found.rejections]
    assert "serving.repository_path is '/models/mein modell': Triton starts its models" in reason
    assert ".yaml:" in reason


def test_the_plan_of_a_workspace_with_any_name_is_not_refused(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = read_config(write_config())
    run = Run(config, Workspace(tmp_path / "jürgen's 模型", config.name))
    assert make_plan(run.config, run.workspace).rejections == ()
