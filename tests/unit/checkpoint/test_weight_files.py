"""Which files of a folder are read: transformers' order, and folders that are no models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from specpipe.checkpoint.convert import Conversion, files_remarks, survey
from specpipe.checkpoint.source import open_source, read_tensors
from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.plan.make_plan import make_plan
from tests.helpers.families import make_family

INDEX, BIN = "model.safetensors.index.json", "pytorch_model.bin"


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def norm_of(folder: Path) -> float:
    with read_tensors(open_source(folder).weights) as reader:
        return float(reader.read("model.norm.weight")[0])


def sharded(folder: Path, value: float, suffix: str = "safetensors") -> None:
    """Write the weights as two shards and an index, with another norm."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.full((64,), value)
    names, stem = sorted(tensors), "model" if suffix == "safetensors" else "pytorch_model"
    places = {name: f"{stem}-0000{1 + (i % 2)}-of-00002.{suffix}" for i, name in enumerate(names)}
    for place in set(places.values()):
        part = {name: tensors[name] for name in names if places[name] == place}
        if suffix == "safetensors":
            save_file(part, folder / place, metadata={"format": "pt"})
        else:
            torch.save(part, folder / place)
    index = folder / (INDEX if suffix == "safetensors" else f"{BIN}.index.json")
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def single(folder: Path, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    torch.save({**tensors, "model.norm.weight": torch.full((64,), value)}, folder / BIN)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "all": lambda folder: None,
    "no single file": lambda folder: (folder / "model.safetensors").unlink(),
    "only .bin": lambda folder: [f.unlink() for f in folder.glob("model*")],  # type: ignore
    "only shards of .bin": lambda folder: [  # type: ignore
        f.unlink() for f in (*folder.glob("model*"), folder / BIN)
    ],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_read_in_the_order_of_transformers(layout: str, copy: Path) -> None:
    sharded(copy, 3.0)
    single(copy, 5.0)
    sharded(copy, 7.0, "bin")
    LAYOUTS[layout](copy)
    judge = AutoModelForCausalLM.from_pretrained(copy).state_dict()["model.norm.weight"]
    assert norm_of(copy) == float(judge[0])


def test_the_files_that_were_taken_are_named(copy: Path) -> None:
    assert files_remarks(open_source(copy)) == []
    sharded(copy, 3.0)
    single(copy, 5.0)
    (remark,) = files_remarks(open_source(copy))
    assert remark == (
        f"the weights are read from model.safetensors, not from {INDEX}, pytorch_model.bin"
    )


def test_a_stale_index_is_ignored(copy: Path) -> None:
    (copy / INDEX).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00009.safetensors"}}))
    assert [file.name for file in open_source(copy).weights] == ["model.safetensors"]


def test_shards_of_two_models_are_refused(copy: Path) -> None:
    sharded(copy, 3.0)
    (copy / "model.safetensors").unlink()
    shutil.copyfile(copy / "model-00001-of-00002.safetensors", copy / "model-extra.safetensors")
    index = json.loads((copy / INDEX).read_text())
    index["weight_map"]["extra"] = "model-extra.safetensors"
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"is in model-00001.* and in model-extra"):
        survey(open_source(copy), "float32")


def _adapter(folder: Path) -> None:
    facts = {"peft_type": "LORA", "base_model_name_or_path": "owner/base"}
    (folder / "adapter_config.json").write_text(json.dumps(facts))


def _cache(folder: Path) -> None:
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("abc123")
    (folder / "snapshots/abc123").mkdir(parents=True)


def _unfinished(folder: Path) -> None:
    (folder / ".cache/huggingface/download").mkdir(parents=True)
    (folder / ".cache/huggingface/download/x.incomplete").write_bytes(b"")


MISTAKEN: list[tuple[Callable[[Path], Any], str]] = [
    (_adapter, r"a PEFT adapter \(LORA\) for owner/base, not a model(.|\n)*merge_and_unload"),
    (_cache, r"root of a model in the hub's cache(.|\n)*snapshots/abc123"),
    (lambda f: (f / "models--owner--name").mkdir(), "hub's cache, not a model(.|\n)*owner/name"),
    (_unfinished, "the download was cut short, and no weights"),
    (lambda f: (f / "model.safetensors").symlink_to(f / "gone"),
     "the download was cut short: model.safetensors point to no file"),
    (lambda f: (f / "consolidated.safetensors").touch(), "Mistral's format: consolidated.safe"),
    (lambda f: (f / "consolidated.00.pth").touch(), "Meta's format: consolidated.00.pth"),
    (lambda f: (f / "m.Q4_K_M.gguf").touch(), r"llama.cpp's format(.|\n)*give the file: .*gguf"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "words"), MISTAKEN)
def test_a_folder_that_is_no_model_is_named(
    make: Callable[[Path], Any], words: str, copy: Path
) -> None:
    (copy / "model.safetensors").unlink()
    make(copy)
    with pytest.raises(ConfigError, match=words):
        open_source(copy)


def test_an_adapter_next_to_weights_is_refused(copy: Path) -> None:
    """transformers with peft loads the adapter's base then, not these weights."""
    _adapter(copy)
    with pytest.raises(ConfigError, match=r"next to weights(.|\n)*remove adapter_config.json"):
        open_source(copy)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"]
)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git-lfs"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "a web page, not the file itself"),
    ],
)
def test_files_that_stand_for_others_are_named(
    name: str, content: bytes, words: str, copy: Path
) -> None:
    (copy / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{name}: (.|\n)*{words}"):
        open_source(copy)


def test_pickles_of_torch_before_1_6_are_read(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(tensors, copy / BIN, _use_new_zipfile_serialization=False)
    out = copy / "out"
    out.mkdir()
    Conversion(open_source(copy), "float32").write(out, lambda done, total: None)
    assert torch.equal(
        load_file(out / "rank0.safetensors")["transformer.ln_f.weight"],
        tensors["model.norm.weight"],
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": {"a": torch.zeros(2)}}, "'state_dict' is dict, not a tensor"),
        ([torch.zeros(2)], "holds list, not tensors by name"),
    ],
)
def test_pickles_of_other_things_are_named(content: Any, words: str, copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save(content, copy / BIN)
    with pytest.raises(ConfigError, match=words):
        survey(open_source(copy), "float32")


@pytest.mark.parametrize(
    ("family", "prefix"),
    [("LlamaForCausalLM", "model."), ("PhiForCausalLM", "model."),
     ("GPTNeoXForCausalLM", "gpt_neox.")],
)  # fmt: skip
def test_names_without_the_prefix_of_the_model_are_read(
    family: str, prefix: str, tmp_path: Path
) -> None:
    folder = make_family(tmp_path / "model", family, "plain")
    file = folder / "model.safetensors"
    tensors = {n.removeprefix(prefix): t for n, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    if int(transformers.__version__.split(".")[0]) >= 5:  # 4 reads such files without a head only
        judge = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)[1]
        assert not judge["missing_keys"]
    survey(open_source(folder), "float32")


def plan_of(folder: Path, write_config: Callable[..., Path], **sections: Any) -> Any:
    config = read_config(write_config(target={"model": str(folder)}, **sections))
    return make_plan(config, Workspace(folder.parent, "tiny"))


def _without(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without("model.norm.weight"), "'target.model'.*missing: model.norm.weight"),
        (_cut, "not a whole safetensors file"),
        (_adapter, "a PEFT adapter"),
    ],
)
def test_plan_refuses_what_headers_tell(
    change: Callable[[Path], None], words: str, copy: Path, write_config
) -> None:
    change(copy)
    with pytest.raises(ConfigError, match=words):
        plan_of(copy, write_config)


def test_plan_names_the_files_that_are_read(copy: Path, write_config) -> None:
    single(copy, 5.0)
    assert any("not from pytorch_model.bin" in note for note in plan_of(copy, write_config).notes)


def test_a_drafter_is_no_model(copy: Path, write_config) -> None:
    tensors = {"fc.weight": torch.zeros(64, 192), "midlayer.hidden_norm.weight": torch.zeros(64)}
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(Unsupported, match="an EAGLE-3 drafter, not a model"):
        plan_of(copy, write_config)
