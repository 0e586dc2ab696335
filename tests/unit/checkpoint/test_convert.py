"""Conversion: every tensor in its place, every source tensor accounted for, errors that name it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from specpipe.checkpoint.convert import Conversion
from specpipe.checkpoint.medusa import open_heads
from specpipe.checkpoint.quantized.formats import Quantizing
from specpipe.checkpoint.source import open_source
from specpipe.core.errors import ConfigError, StageFailed, Unsupported
from tests.helpers.models import TEMPLATE, make_heads, make_llama


def convert(source: Path, out: Path, dtype: str = "float32") -> dict[str, torch.Tensor]:
    out.mkdir()
    Conversion(open_source(source), dtype).write(out, lambda done, total: None)  # type: ignore[arg-type]
    return load_file(out / "rank0.safetensors")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def edit(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.update(changes)
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_names_and_shapes_are_upstreams(tiny: Path, tmp_path: Path) -> None:
    ours = convert(tiny, tmp_path / "out")
    theirs = load_file(tiny / "model.safetensors")
    layer = "transformer.layers.1."
    np.testing.assert_array_equal(
        ours[layer + "attention.qkv.weight"],
        torch.cat([theirs[f"model.layers.1.self_attn.{n}_proj.weight"] for n in "qkv"]),
    )
    for our_name, their_name in {
        "mlp.fc": "mlp.gate_proj", "mlp.gate": "mlp.up_proj", "mlp.proj": "mlp.down_proj",
        "attention.dense": "self_attn.o_proj", "input_layernorm": "input_layernorm",
        "post_layernorm": "post_attention_layernorm",
    }.items():  # fmt: skip
        np.testing.assert_array_equal(
            ours[f"{layer}{our_name}.weight"], theirs[f"model.layers.1.{their_name}.weight"]
        )
    np.testing.assert_array_equal(
        ours["lm_head.weight"], ours["transformer.vocab_embedding.weight"]
    )


def test_config_json_has_upstreams_keys(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "out", "bfloat16")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architecture"] == "LlamaForCausalLM" and config["dtype"] == "bfloat16"
    assert config["position_embedding_type"] == "rope_gpt_neox"
    assert config["mapping"]["world_size"] == 1 and config["rotary_base"] == 10000.0
    assert config["quantization"] == {"quant_algo": None, "kv_cache_quant_algo": None}
    assert config["num_key_value_heads"] == 2 and config["head_size"] == 16


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_are_cast_to_the_asked_dtype(dtype: str, tiny: Path, tmp_path: Path) -> None:
    ours = convert(tiny, tmp_path / "out", dtype)
    theirs = load_file(tiny / "model.safetensors")["model.norm.weight"]
    assert ours["transformer.ln_f.weight"].dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(
        ours["transformer.ln_f.weight"].float(), theirs.to(getattr(torch, dtype)).float()
    )


def test_sharded_and_pickled_checkpoints_give_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    expected = convert(tiny, tmp_path / "one")
    sharded = make_llama(tmp_path / "sharded", seed=1, save={"max_shard_size": "100KB"})
    assert (sharded / "model.safetensors.index.json").is_file()
    pickled = Path(shutil.copytree(tiny, tmp_path / "pickled"))
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for name, folder in {"s": sharded, "p": pickled}.items():
        got = convert(folder, tmp_path / name)
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[k], expected[k]) for k in got), name


def test_a_pickle_with_code_in_it_is_never_run(copy: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "boom", "ran"))

    (copy / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Bomb()}, copy / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be read as plain tensors"):
        convert(copy, tmp_path / "out")
    assert not (tmp_path / "boom").exists()


def rewrite(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.norm.weight"), "missing: model.norm.weight"),
        (lambda t: t.update({"extra": torch.zeros(2)}), "unexpected: extra"),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(65)}),
            r"model.norm.weight has shape \(65,\), expected \(64,\)",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.int32)}),
            "model.norm.weight has dtype int32",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, words: str, copy: Path, tmp_path: Path) -> None:
    rewrite(copy, change)
    with pytest.raises(ConfigError, match=words):
        convert(copy, tmp_path / "out")


def test_rotary_buffers_and_the_copy_of_a_tied_head_may_be_there(
    copy: Path, tmp_path: Path
) -> None:
    rewrite(copy, lambda t: t.update({
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
        "lm_head.weight": t["model.embed_tokens.weight"].clone(),
    }))  # fmt: skip
    convert(copy, tmp_path / "out")


def test_a_truncated_file_is_named(copy: Path, tmp_path: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(ConfigError, match=r"model\.safetensors: not a whole safetensors file"):
        convert(copy, tmp_path / "out")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", seed=1, save={"max_shard_size": "100KB"})
    sorted(folder.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(ConfigError, match=r"model-00002.*no such file"):
        open_source(folder)


@pytest.mark.parametrize(
    "shard",
    ["../outside.safetensors", "/etc/passwd.safetensors", "a/../../b.bin", "..\\x.bin", "", ".",
     "passwd", 7],
)  # fmt: skip
def test_a_shard_outside_its_folder_is_refused(shard: object, copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"lm_head.weight": shard}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="the file of lm_head.weight is .* no name in this fold"):
        open_source(copy)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["a.safetensors"]}])
def test_an_index_without_a_map_is_a_sentence(index: dict, copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"index.json: has no 'weight_map'"):
        open_source(copy)


def test_the_links_of_a_hub_cache_are_followed(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").rename(tmp_path / "blob")
    (copy / "model.safetensors").symlink_to(tmp_path / "blob")
    convert(copy, tmp_path / "out")


def test_a_folder_without_weights_says_what_was_expected(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no weights(.|\n)*safetensors"):
        open_source(copy)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, Unsupported, "MambaForCausalLM has no converter"),
        ({"architectures": None, "model_type": None}, Unsupported, "no converter"),
        (
            {"architectures": ["PhiForCausalLM"], "model_type": "phi", "qk_layernorm": True},
            Unsupported,
            "qk_layernorm",
        ),
        ({"hidden_act": "gelu"}, Unsupported, "gelu"),
        ({"hidden_size": "big"}, ConfigError, "'hidden_size' is 'big'"),
        ({"num_key_value_heads": 3}, ConfigError, "4 heads do not divide by 3"),
        (
            {"rope_parameters": {"rope_type": "ntk", "rope_theta": 1e4, "factor": 2.0}},
            Unsupported,
            "rope scaling of type 'ntk'",
        ),
    ],
)
def test_a_config_that_cannot_be_converted_is_refused(
    changes: dict, kind: type[Exception], words: str, copy: Path, tmp_path: Path
) -> None:
    edit(copy, **changes)
    with pytest.raises(kind, match=words):
        convert(copy, tmp_path / "out")


def test_both_spellings_of_rope_scaling_are_read(copy: Path, tmp_path: Path) -> None:
    edit(copy, rope_parameters=None, rope_theta=5e5,
         rope_scaling={"type": "linear", "factor": 2.0})  # fmt: skip
    convert(copy, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["rotary_base"] == 5e5
    assert config["rotary_scaling"]["rope_type"] == "linear"


def test_config_json_that_is_not_json_is_named(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: not valid JSON"):
        open_source(copy)


def test_a_tokenizer_of_another_model_is_refused(copy: Path, tmp_path: Path) -> None:
    file = copy / "tokenizer.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    tokens = values["model"]["vocab"]
    tokens |= {f"extra {i}": len(tokens) + i for i in range(50)}
    file.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ConfigError, match="the tokenizer belongs to another model"):
        convert(copy, tmp_path / "out")


def test_a_tokenizer_is_refused_before_anything_is_written(copy: Path, tmp_path: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="no usable tokenizer"):
        convert(copy, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_tokenizer_is_refused(copy: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    with pytest.raises(ConfigError, match="no usable tokenizer"):
        convert(copy, tmp_path / "out")


def test_the_chat_template_and_the_end_tokens_are_those_of_the_source(
    tiny: Path, tmp_path: Path
) -> None:
    convert(tiny, tmp_path / "out")
    facts = json.loads((tmp_path / "out/tokenizer/tokenizer_facts.json").read_text())
    assert facts["chat"]["templates"] == {"default": TEMPLATE}
    assert facts["end_ids"] == [0]


def test_too_little_disk_is_found_before_anything_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1000))
    with pytest.raises(StageFailed, match="GiB are free"):
        convert(tiny, tmp_path / "out")


def test_inputs_change_with_the_weights_and_with_the_dtype(copy: Path) -> None:
    source = open_source(copy)
    before = Conversion(source, "float32").inputs()
    assert before != Conversion(source, "bfloat16").inputs()
    rewrite(copy, lambda t: t["model.norm.weight"].add_(1))
    after = Conversion(open_source(copy), "float32").inputs()
    assert {k for k in before if before[k] != after[k]} == {"source model.safetensors"}


def test_a_tokenizer_without_tokenizer_json_is_an_input_too(copy: Path) -> None:
    (copy / "vocab.json").write_text("{}")
    (copy / "hf_quant_config.json").write_text("{}")
    names = {file.name for file in open_source(copy).files()}
    assert "hf_quant_config.json" in names and "vocab.json" not in names
    (copy / "tokenizer.json").unlink()
    assert "vocab.json" in {file.name for file in open_source(copy).files()}


def test_progress_ends_at_the_whole(tiny: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    (tmp_path / "out").mkdir()
    Conversion(open_source(tiny), "float32").write(tmp_path / "out", lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1] and seen == sorted(seen)


def test_what_is_refused_is_refused_before_the_first_tensor(copy: Path, tmp_path: Path) -> None:
    """Heads need a `model_type`, calibration needs whole files: both are known from headers."""
    make_heads(tmp_path / "heads", seed=2, heads=2)
    heads = open_heads(tmp_path / "heads").in_full(7)
    edit(copy, model_type=None)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ConfigError, match="has no model_type, which Medusa heads need"):
        Conversion(open_source(copy), "float32", heads).write(out, pytest.fail)
    assert not list(out.glob("*.safetensors"))


def test_a_missing_tensor_is_refused_before_a_calibration(copy: Path, tmp_path: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "out").mkdir()
    quantizing = Quantizing("fp8", prompts=("a",))
    with pytest.raises(ConfigError, match="missing: model.layers.1.mlp.up_proj.weight"):
        Conversion(open_source(copy), "float32", quantizing=quantizing).write(
            tmp_path / "out", pytest.fail
        )
