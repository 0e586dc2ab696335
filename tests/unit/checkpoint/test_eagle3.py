"""EAGLE-3 drafters: known in both layouts, whatever the method, and checked before a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from specpipe.checkpoint.drafter_method import drafter_method
from specpipe.checkpoint.eagle import open_eagle
from specpipe.checkpoint.medusa import open_heads
from specpipe.checkpoint.redrafter import open_redrafter
from specpipe.config.run_config import read_config
from specpipe.config.speculation import Eagle, ReDrafter
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.plan.make_plan import make_plan

AUTHORS: dict[str, Any] = {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 100}
SPECULATORS: dict[str, Any] = {
    "architectures": ["Eagle3DraftModel"], "speculators_model_type": "eagle3",
    "speculators_config": {"algorithm": "eagle3", "verifier": {}},
}  # fmt: skip
LAYOUTS = {
    "authors'": ("midlayer", AUTHORS),
    "authors', as a plain Llama": ("midlayer", {"architectures": ["LlamaForCausalLM"]}),
    "speculators'": ("layers.0", SPECULATORS),
    "layers.0, as a plain Llama": ("layers.0", {"architectures": ["LlamaForCausalLM"]}),
}


def make_eagle3(
    folder: Path, layout: str, *, hidden: int = 64, vocab: int = 320, own: int = 100
) -> Path:
    layer, config = LAYOUTS[layout]
    shapes = {
        "fc.weight": (hidden, 3 * hidden), f"{layer}.hidden_norm.weight": (hidden,),
        f"{layer}.input_layernorm.weight": (hidden,), "norm.weight": (hidden,),
        f"{layer}.self_attn.q_proj.weight": (hidden, 2 * hidden),
        f"{layer}.mlp.up_proj.weight": (96, hidden), "lm_head.weight": (own, hidden),
        "embed_tokens.weight": (vocab, hidden),
    }  # fmt: skip
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    tensors |= {"d2t": torch.zeros(100, dtype=torch.int64)}
    tensors |= {"t2d": torch.zeros(vocab, dtype=torch.bool)}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_known_whatever_the_method(layout: str, tmp_path: Path) -> None:
    folder = make_eagle3(tmp_path / "drafter", layout)
    words = "an EAGLE-3 drafter, not(.|\n)*method: eagle3"
    with pytest.raises(Unsupported, match=words):
        open_heads(folder)
    with pytest.raises(Unsupported, match=words):
        open_eagle(folder, Eagle("eagle", ""), "float16")
    with pytest.raises(Unsupported, match=words):
        open_redrafter(folder, ReDrafter("redrafter", ""), release="")


def test_it_is_known_by_its_config_if_its_names_are_an_eagles(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SPECULATORS))
    assert drafter_method(tmp_path, {"fc.weight", "layers.0.mlp.up_proj.weight"}) == "eagle3"


def eagle3_plan(write_config: Callable[..., Path], tmp_path: Path, model: str) -> Any:
    engine = {"backend": "llmapi", "gpu": "H100-SXM", "dtype": "bfloat16"}
    speculation = {"method": "eagle3", "draft": {"model": model}}
    path = write_config(
        engine={**engine, "max_input_len": 100, "max_seq_len": 200}, speculation=speculation
    )
    return make_plan(read_config(path), Workspace(tmp_path, "tiny"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fitting_drafter_is_planned(layout: str, write_config, tmp_path: Path) -> None:
    folder = make_eagle3(tmp_path / "drafter", layout)
    plan = eagle3_plan(write_config, tmp_path, str(folder))
    assert not plan.rejections


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"hidden": 48}, "fc.weight reads 144 values, which are no hidden states of the target"),
        ({"vocab": 300}, "t2d has a vocabulary of 300, the target has 320"),
        ({"own": 90}, "lm_head has 90 tokens, d2t 100"),
    ],
)
def test_a_drafter_of_another_target_is_refused(
    sizes: dict[str, int], words: str, write_config, tmp_path: Path
) -> None:
    folder = make_eagle3(tmp_path / "drafter", "authors'", **sizes)
    plan = eagle3_plan(write_config, tmp_path, str(folder))
    assert any(words in str(reason) for reason in plan.rejections)


def test_the_home_folder_is_expanded(
    write_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = make_eagle3(tmp_path / "drafter", "authors'")
    plan = eagle3_plan(write_config, tmp_path, "~/drafter")
    assert plan.requests["target"].sources["draft"] == str(folder)
    assert not plan.rejections


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ("~/nothing", ConfigError, "'speculation.draft.model' is '~/nothing': no such folder"),
        ("./nothing", ConfigError, "no such folder"),
        ("TINY", ConfigError, "no EAGLE-3 drafter"),
    ],
)
def test_a_folder_without_one_is_named(
    model: str, error: type[Exception], words: str, write_config, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        eagle3_plan(write_config, tmp_path, model.replace("TINY", str(tiny)))
