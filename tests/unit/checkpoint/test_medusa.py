"""Medusa heads: three layouts, counted from the tensors, in one checkpoint with their target."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from specpipe.checkpoint.convert import Conversion
from specpipe.checkpoint.inspection.inspect import inspect_folder
from specpipe.checkpoint.medusa import open_heads
from specpipe.checkpoint.source import open_source
from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace, read_model_config
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.plan.make_plan import make_plan
from specpipe.run.run import Run
from specpipe.run.stages import build
from tests.helpers.models import make_heads, make_llama


def no_progress(done: int, total: int) -> None:
    pass


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    make_heads(tmp_path / "heads", seed=3, heads=3, layers=2, vocab=320)
    return tmp_path / "heads"


def converted(tiny: Path, heads: Path, out: Path) -> dict[str, torch.Tensor]:
    out.mkdir()
    Conversion(open_source(tiny), "float32", open_heads(heads)).write(out, no_progress)
    return load_file(out / "rank0.safetensors")


def test_heads_are_counted_from_the_tensors_not_from_the_config(heads: Path) -> None:
    (heads / "config.json").write_text(json.dumps({"medusa_num_heads": 2}))
    found = open_heads(heads)
    assert (found.num_heads, found.num_layers, found.hidden_size) == (3, 2, 64)
    assert not found.shares_output


def test_heads_and_target_become_one_checkpoint(tiny: Path, heads: Path, tmp_path: Path) -> None:
    tensors = converted(tiny, heads, tmp_path / "out")
    source = load_file(heads / "medusa_lm_head.safetensors")
    at = "medusa_heads.1."
    assert torch.equal(tensors[f"{at}medusa_layers.1.linear.weight"], source["1.1.linear.weight"])
    assert torch.equal(tensors[f"{at}medusa_layers.0.linear.bias"], source["1.0.linear.bias"])
    assert torch.equal(tensors[f"{at}lm_head.weight"], source["1.2.weight"])
    assert "transformer.ln_f.weight" in tensors
    model = read_model_config(tmp_path / "out")
    assert (model.num_medusa_heads, model.num_medusa_layers) == (3, 2)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: f"medusa_head.{name}",
        lambda name: (
            "medusa_heads."
            + (
                f"{name[0]}.lm_head.weight"
                if ".2." in name
                else name.replace(".", ".medusa_layers.", 1)
            )
        ),
    ],
    ids=["FasterDecoding", "Medusa-2", "ModelOpt"],
)
def test_every_layout_gives_the_same_checkpoint(
    rename, suffix: str, tiny: Path, heads: Path, tmp_path: Path
) -> None:
    source = {rename(n): t for n, t in load_file(heads / "medusa_lm_head.safetensors").items()}
    other = tmp_path / "other"
    other.mkdir()
    if suffix == ".pt":
        torch.save(source, other / "medusa_lm_head.pt")
    else:
        save_file(source, other / "medusa_lm_head.safetensors")
    theirs = converted(tiny, other, tmp_path / "theirs")
    ours = converted(tiny, heads, tmp_path / "ours")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_heads_among_the_models_own_tensors_are_found_and_may_be_left_out(
    tiny: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    both.mkdir()
    for file in tiny.iterdir():
        (both / file.name).write_bytes(file.read_bytes())
    inner = {f"medusa_head.{n}": t for n, t in make_heads(tmp_path / "h", seed=1).items()}
    save_file({**load_file(tiny / "model.safetensors"), **inner}, both / "model.safetensors")
    assert open_heads(both).num_heads == 3 and open_heads(both).shares_output
    out = tmp_path / "plain"
    out.mkdir()
    Conversion(open_source(both), "float32").write(out, no_progress)
    assert not any("medusa" in name for name in load_file(out / "rank0.safetensors"))


def test_a_folder_without_heads_says_what_was_looked_for(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="no Medusa heads among the tensors"):
        open_heads(tiny)


def test_heads_with_a_hole_are_refused_by_name(heads: Path) -> None:
    file = heads / "medusa_lm_head.safetensors"
    tensors = load_file(file)
    del tensors["1.1.linear.bias"]
    save_file(tensors, file)
    with pytest.raises(ConfigError, match=r"lack medusa_heads\.1\.medusa_layers\.1\.linear\.bias"):
        open_heads(heads)


def test_heads_of_another_size_are_refused_by_name(tiny: Path, tmp_path: Path) -> None:
    make_heads(tmp_path / "wide", seed=1, hidden=32)
    with pytest.raises(ConfigError, match=r"0\.medusa_layers\.0\.linear\.weight has shape"):
        converted(tiny, tmp_path / "wide", tmp_path / "out")


def test_a_pickle_with_code_in_it_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"0.0.linear.weight": Trap()}, tmp_path / "medusa_lm_head.pt")
    with pytest.raises(ConfigError, match="cannot be read as plain tensors"):
        open_heads(tmp_path)


def test_the_calibration_is_read_and_checked(heads: Path) -> None:
    file = heads / "calibration.json"
    file.write_text(json.dumps({"conditional": [[0.5, 0.2], [0.4, 0.1], [0.3, 0.1]]}))
    assert open_heads(heads).accuracy == ((0.5, 0.2), (0.4, 0.1), (0.3, 0.1))
    file.write_text(json.dumps({"conditional": [[0.5]]}))
    with pytest.raises(ConfigError, match="1 heads are calibrated, 3 are there"):
        open_heads(heads)


def test_the_checkpoint_is_stale_when_the_heads_change(tiny: Path, heads: Path) -> None:
    source = open_source(tiny)
    before = Conversion(source, "float32", open_heads(heads)).inputs()
    make_heads(heads, seed=4, heads=3, layers=2, vocab=320)
    after = Conversion(source, "float32", open_heads(heads)).inputs()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"heads medusa_lm_head.safetensors"}


LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def converted_in_full(source: Path, heads: Path, out: Path, nodes: int = 7) -> dict[str, Any]:
    """Write the checkpoint that TensorRT-LLM takes; return its config."""
    out.mkdir()
    Conversion(open_source(source), "float32", open_heads(heads).in_full(nodes)).write(
        out, no_progress
    )
    config: dict[str, Any] = json.loads((out / "config.json").read_text())
    return config


def test_in_full_the_config_has_every_key_of_upstreams_medusa_config(
    heads: Path, tmp_path: Path
) -> None:
    source = make_llama(tmp_path / "rope", seed=1, rope_scaling=dict(LLAMA3_ROPE), head_dim=32)
    config = converted_in_full(source, heads, tmp_path / "out")
    expected = {
        "architecture": "MedusaForCausalLM", "model_type": "llama", "num_medusa_heads": 3,
        "num_medusa_layers": 2, "max_draft_len": 7, "head_size": 32, "hidden_act": "silu",
        "attn_bias": False, "mlp_bias": False, "position_embedding_type": "rope_gpt_neox",
        "rotary_base": 10000.0, "num_key_value_heads": 2,
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    assert LLAMA3_ROPE.items() <= config["rotary_scaling"].items()  # no factor is lost


def test_in_full_a_shared_output_layer_is_written_once_a_head(tiny: Path, tmp_path: Path) -> None:
    source = make_heads(tmp_path / "heads", seed=3)
    converted_in_full(tiny, tmp_path / "heads", tmp_path / "out")
    tensors = load_file(tmp_path / "out/rank0.safetensors")
    embedding = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"]
    for head in range(3):
        at = f"medusa_heads.{head}."
        assert torch.equal(tensors[f"{at}lm_head.weight"], embedding)
        linear = tensors[f"{at}medusa_layers.0.linear.weight"]
        assert torch.equal(linear, source[f"{head}.0.linear.weight"])
    assert torch.equal(tensors["lm_head.weight"], embedding)


def test_a_token_map_is_for_our_own_engine(tiny: Path, tmp_path: Path) -> None:
    order = list(range(320))[::-1]
    make_heads(tmp_path / "heads", seed=3, token_map=order)
    converted_in_full(tiny, tmp_path / "heads", tmp_path / "full")
    compact = converted(tiny, tmp_path / "heads", tmp_path / "compact")
    assert compact["medusa_heads.token_map"].tolist() == order
    assert "medusa_heads.token_map" not in load_file(tmp_path / "full/rank0.safetensors")
    for folder in ("full", "compact"):
        assert inspect_folder(tmp_path / folder).defects == ()


def test_in_full_heads_keep_their_own_output_layers(
    tiny: Path, heads: Path, tmp_path: Path
) -> None:
    converted_in_full(tiny, heads, tmp_path / "full")
    full = load_file(tmp_path / "full/rank0.safetensors")
    compact = converted(tiny, heads, tmp_path / "compact")
    assert full.keys() == compact.keys()
    assert all(torch.equal(full[name], compact[name]) for name in full)


def test_another_draft_length_makes_a_checkpoint_in_full_stale_but_not_a_compact_one(
    tiny: Path, heads: Path
) -> None:
    source, found = open_source(tiny), open_heads(heads)
    inputs = [Conversion(source, "float32", found.in_full(n)).inputs() for n in (7, 8)]
    assert {key for key in inputs[0] if inputs[0][key] != inputs[1][key]} == {"max_draft_len"}
    assert "max_draft_len" not in Conversion(source, "float32", found).inputs()


def test_a_target_that_does_not_say_what_it_is_gets_no_heads_in_full(
    tiny: Path, heads: Path
) -> None:
    nameless = {**open_source(tiny).hf_config, "model_type": ""}
    with pytest.raises(ConfigError, match="no model_type"):
        open_heads(heads).in_full(7).config(nameless, {})


def test_the_convert_stage_writes_heads_in_full_where_the_backend_wants_them(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    make_heads(tmp_path / "heads", seed=3, heads=2)
    engine = {"backend": "tensorrt", "gpu": "L4", "dtype": "float16", "tp_size": 2}
    path = write_config(
        engine={**engine, "max_input_len": 100, "max_seq_len": 200},
        speculation={"method": "medusa", "heads": str(tmp_path / "heads"), "tree": [[0, 0], [1]]},
    )
    config = read_config(path)
    build(Run(config, Workspace(tmp_path, config.name)), ("convert",))
    found = inspect_folder(tmp_path / "engines/tiny/checkpoints/target")
    assert found.defects == () and found.model.architecture == "MedusaForCausalLM"
    assert found.speculation.max_draft_len == 3  # [0], [0, 0], [1]
    assert found.ranks is not None and found.ranks.tp_size == 2


@pytest.mark.parametrize(
    ("names", "config", "words"),
    [
        (("fc.weight", "layers.0.mlp.up_proj.weight"), {},
         "an EAGLE drafter, not Medusa heads(.|\n)*method: eagle$"),
        (("fc.weight", "midlayer.mlp.up_proj.weight"), {},
         "an EAGLE-3 drafter(.|\n)*method: eagle3"),
        (("rnn_u.weight", "lm_head.0.linear.weight"), {}, "a ReDrafter(.|\n)*method: redrafter"),
        (("0.0.linear.weight", "0.1.weight"), {"exit_dim": 4, "num_draft_layers": 1},
         "a ReDrafter"),
    ],
    ids=["EAGLE", "EAGLE-3", "ReDrafter", "ReDrafter that looks like a head"],
)  # fmt: skip
def test_drafters_of_other_methods_are_refused_with_the_way_to_them(
    names: tuple[str, ...], config: dict[str, int], words: str, tmp_path: Path
) -> None:
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unsupported, match=words):
        open_heads(tmp_path)


@pytest.mark.parametrize("name", ["0.0.linear.scale", "norm.weight", "3.extra.weight"])
def test_tensors_that_no_heads_have_are_refused(name: str, heads: Path) -> None:
    file = heads / "medusa_lm_head.safetensors"
    save_file({**load_file(file), name: torch.zeros(4)}, file)
    with pytest.raises(ConfigError, match=f"no Medusa heads have, or twice: {name}"):
        open_heads(heads)


def test_tensors_of_heads_within_a_model_are_accounted_for(tiny: Path, tmp_path: Path) -> None:
    inner = {f"medusa_head.{n}": t for n, t in make_heads(tmp_path / "h", seed=1).items()}
    both = {**load_file(tiny / "model.safetensors"), **inner}
    save_file(both, tmp_path / "model.safetensors")
    assert open_heads(tmp_path).num_heads == 3
    save_file({**both, "medusa_head.0.0.scale": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"or twice: medusa_head\.0\.0\.scale"):
        open_heads(tmp_path)


def test_a_head_in_two_spellings_is_refused(heads: Path) -> None:
    file = heads / "medusa_lm_head.safetensors"
    tensors = load_file(file)
    tensors["medusa_head.0.0.linear.weight"] = tensors["0.0.linear.weight"].clone()
    save_file(tensors, file)
    with pytest.raises(ConfigError, match="or twice"):
        open_heads(heads)


def test_a_head_of_another_shape_than_the_first_is_refused(heads: Path) -> None:
    file = heads / "medusa_lm_head.safetensors"
    save_file({**load_file(file), "2.2.weight": torch.zeros(300, 64)}, file)
    with pytest.raises(ConfigError, match=r"heads\.2\.lm_head\.weight has shape \(300, 64\)"):
        open_heads(heads)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"vocab": 300}, "the heads have a vocabulary of 300 tokens, the target has 320"),
        ({"hidden": 32}, "the heads read hidden states of 32 values, the target has 64"),
    ],
)
def test_plan_refuses_heads_of_another_target(
    sizes: dict[str, int], words: str, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    make_heads(tmp_path / "heads", seed=3, **sizes)
    speculation = {"method": "medusa", "heads": str(tmp_path / "heads"), "tree": [[0]]}
    plan = make_plan(read_config(write_config(speculation=speculation)), Workspace(tmp_path, "x"))
    assert any(words in str(reason) for reason in plan.rejections)
