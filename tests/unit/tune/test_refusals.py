"""What cannot be tuned is refused in a sentence."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from specpipe.config.run_config import read_config
from specpipe.config.speculation import PLAIN, PromptLookup
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.run.run import Run
from specpipe.tune.cost import CostCurve, read_costs
from specpipe.tune.stage import Prices, recommend_run, tune_run

CONFIGS = Path("model_configs")


@pytest.mark.parametrize("run", [tune_run, recommend_run])
@pytest.mark.parametrize("name", ["deepseek-v3_mtp_llmapi", "vicuna7b_eagle"])
def test_methods_that_only_upstream_has_are_not_tuned_here(run, name: str, tmp_path: Path) -> None:
    config = read_config(CONFIGS / f"{name}.yaml")
    with pytest.raises(Unsupported, match=r"method \w+ runs only in TensorRT-LLM") as caught:
        run(Run(config, Workspace(tmp_path, config.name)), Prices())
    assert "backend: llmapi" not in str(caught.value)


@pytest.mark.parametrize("run", [tune_run, recommend_run])
def test_an_architecture_without_an_estimate_is_not_tuned(run, tmp_path: Path) -> None:
    config = read_config(CONFIGS / "deepseek-v3_mtp_llmapi.yaml")
    config = replace(config, speculation=PromptLookup("prompt_lookup"))
    with pytest.raises(
        Unsupported, match=r"DeepSeek-V3 has an architecture that specpipe does not know"
    ):
        run(Run(config, Workspace(tmp_path, config.name)), Prices())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '{"step_ms": {"1": 14, "8": 15}, "head_ms": 1}',
            "in addition to step_ms it may have heads_ms",
        ),
        ('{"step_ms": {"1": 14, "8": 15}, "heads_ms": "1"}', "'1' is not a number of milliseconds"),
        ('{"step_ms": {"1": 14, "8": 15}, "draft_ms": -1}', "-1 ms cannot be"),
        ('{"step_ms": {"1": 14, "8": Infinity}}', "inf ms cannot be"),
        ('{"step_ms": {"1": 14, "8": NaN}}', "nan ms cannot be"),
        ('{"step_ms": {"1": 14, "8": true}}', "True is not a number of milliseconds"),
        ('{"step_ms": {"1": 14, "8": 15}, "pads_steps": 1}', "pads_steps"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_cost_model_that_is_none_is_refused(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="not a cost model") as caught:
        read_costs(file)
    assert words in str(caught.value)


def test_steps_that_were_timed_with_one_width_cost_the_same_beyond_it() -> None:
    """A prompt that leaves room for one row gives one point."""
    assert CostCurve((1,), (9.0,))(7) == 9.0


def test_no_setting_is_tried_whose_step_is_longer_than_a_sequence(
    write_config, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": word}) + "\n" for word in ("a", "b")))
    config = read_config(
        write_config(
            engine={"backend": "openvino", "max_input_len": 6, "max_seq_len": 8},
            speculation={"method": "prompt_lookup", "num_draft_tokens": 2},
            validate={"prompts": str(prompts), "num_prompts": 2, "max_tokens": 2},
        )
    )
    workspace = Workspace(tmp_path, config.name)
    prices = Prices(tmp_path / "costs.json")
    prices.file.write_text('{"step_ms": {"1": 1.0, "64": 1.1}}')
    tuning = tune_run(Run(config, workspace), prices)
    assert max(p.options.num_draft_tokens for p in tuning.tried) == 6
    found = recommend_run(Run(config, workspace), prices)
    assert PLAIN in [p.options for p in found.found]
    assert all(p.options.num_draft_tokens <= 6 for p in found.found)
