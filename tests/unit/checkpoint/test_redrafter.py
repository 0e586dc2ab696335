"""ReDrafter's drafters: three spellings, one checkpoint with their target, refusals by name."""

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from specpipe.checkpoint.convert import Conversion, read_model
from specpipe.checkpoint.families import find_family
from specpipe.checkpoint.inspection.inspect import inspect_folder
from specpipe.checkpoint.medusa import open_heads
from specpipe.checkpoint.redrafter import RecurrentSource, open_redrafter
from specpipe.checkpoint.source import open_source
from specpipe.config.speculation import ReDrafter
from specpipe.core.divisibility import ONE_RANK, Parallel
from specpipe.core.errors import ConfigError, Unsupported
from tests.helpers.models import make_heads, make_llama, make_redrafter
from tests.helpers.sharding import merge, read_ranks

OPTIONS = ReDrafter("redrafter", drafter="", num_beams=3, draft_len_per_beam=4)
Tensors = Mapping[str, torch.Tensor]


def opened(folder: Path, release: str = "1.2.1") -> RecurrentSource:
    return open_redrafter(folder, OPTIONS, release)


def converted(
    tiny: Path, drafter: Path, out: Path, parallel: Parallel = ONE_RANK, release: str = "1.2.1"
) -> list[dict[str, torch.Tensor]]:
    out.mkdir()
    found = opened(drafter, release)
    Conversion(open_source(tiny), "float32", found, parallel=parallel).write(out, lambda *at: None)
    return read_ranks(out)


def plural(name: str) -> str:
    return name.replace("lm_head.", "lm_heads.").replace("input_proj.", "input_projs.")


def unnamed(name: str) -> str:
    return name.replace("lm_head.", "0.")


KINDS = {
    "recurrent": {},
    "projected": {"exit_dim": 96},
    "summed": {"rnn": False},
    "summed and projected": {"rnn": False, "exit_dim": 96, "layers": 1},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spell", [str, plural, unnamed], ids=["Apple's", "plural", "unnamed"])
@pytest.mark.parametrize("file", ["model.safetensors", "model.pt"])
def test_every_spelling_gives_the_source_tensors_under_upstreams_names(
    kind: str, spell: Callable[[str], str], file: str, tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "drafter"
    source = make_redrafter(folder, seed=3, **KINDS[kind])
    (folder / "model.safetensors").unlink()
    write = save_file if file.endswith("safetensors") else torch.save
    write({spell(name): tensor for name, tensor in source.items()}, folder / file)
    (rank,) = converted(tiny, folder, tmp_path / "out")
    ours = {n.removeprefix("drafter."): t for n, t in rank.items() if n.startswith("drafter.")}
    layers = sum(name.endswith("linear.weight") for name in source)
    wanted = {
        "lm_head.weight"
        if name == f"lm_head.{layers}.weight"
        else name.replace("lm_head.", "layers."): t
        for name, t in source.items()
    }
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    assert "transformer.ln_f.weight" in rank and "lm_head.weight" in rank
    assert inspect_folder(tmp_path / "out").defects == ()


@pytest.mark.parametrize("tp_size", [2, 4])
def test_the_shards_of_all_ranks_merge_into_the_whole(
    tp_size: int, tiny: Path, tmp_path: Path
) -> None:
    make_redrafter(tmp_path / "drafter", seed=3, exit_dim=96)
    (whole,) = converted(tiny, tmp_path / "drafter", tmp_path / "one")
    parallel = Parallel(tp_size)
    files = converted(tiny, tmp_path / "drafter", tmp_path / "many", parallel)
    assert files[0]["drafter.lm_head.weight"].shape == (320 // tp_size, 96)
    assert files[0]["drafter.rnn_u.bias"].shape == (64 // tp_size,)
    source, drafter = open_source(tiny), opened(tmp_path / "drafter")
    model = read_model(source, "float32", drafter)
    plans = find_family(source.hf_config).tensors(model) + drafter.tensors(model)
    merged = merge(plans, model, parallel, files)
    assert merged.keys() == whole.keys()
    assert all(torch.equal(merged[name], whole[name]) for name in whole)
    assert inspect_folder(tmp_path / "many").defects == ()


def reference(source: Tensors, hidden: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
    """Return the logits of every step as the paper writes them (2403.09919, section 3).

    s_t = silu(U s + b + W e_t), then residual layers over [h, s_t] and an output matrix.
    """
    state, steps = torch.zeros_like(hidden), []
    layers = sum(name.endswith("linear.weight") for name in source)
    for token in embedded:
        state = torch.nn.functional.silu(
            source["rnn_u.weight"] @ state + source["rnn_u.bias"] + source["rnn_w.weight"] @ token
        )
        x = source["input_proj.weight"] @ torch.cat([hidden, state]) + source["input_proj.bias"]
        for layer in range(layers):
            at = f"lm_head.{layer}.linear."
            x = x + torch.nn.functional.silu(source[f"{at}weight"] @ x + source[f"{at}bias"])
        steps.append(source[f"lm_head.{layers}.weight"] @ x)
    return torch.stack(steps)


def forward(ranks: list[Tensors], hidden: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
    """Return the same from a converted checkpoint: each rank multiplies its rows, all gather."""
    silu = torch.nn.functional.silu

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        parts = []
        for rank in ranks:
            bias = rank.get(f"drafter.{name}.bias", torch.zeros(()))
            parts.append(rank[f"drafter.{name}.weight"] @ x + bias)
        return torch.cat(parts)

    state, steps = torch.zeros_like(hidden), []
    for token in embedded:
        state = silu(linear("rnn_u", state) + linear("rnn_w", token))
        x = linear("input_proj", torch.cat([hidden, state]))
        for layer in range(2):
            x = x + silu(linear(f"layers.{layer}.linear", x))
        steps.append(linear("lm_head", x))
    return torch.stack(steps)


@pytest.mark.parametrize("tp_size", [1, 4])
def test_the_converted_drafter_guesses_what_the_source_guesses(
    tp_size: int, tiny: Path, tmp_path: Path
) -> None:
    source = make_redrafter(tmp_path / "drafter", seed=3, exit_dim=96)
    ranks = converted(tiny, tmp_path / "drafter", tmp_path / "out", Parallel(tp_size))
    hidden, embedded = torch.randn(64), torch.randn(5, 64)
    theirs, ours = reference(source, hidden, embedded), forward(ranks, hidden, embedded)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    swapped = [{**r, "drafter.rnn_w.weight": r["drafter.rnn_u.weight"]} for r in ranks]
    assert not torch.allclose(forward(swapped, hidden, embedded), theirs, atol=1e-2)


@pytest.mark.parametrize(
    ("release", "architecture", "name"),
    [("1.2.1", "LlamaForCausalLM", "ReDrafterForLLaMALM"),
     ("0.18.2", "LlamaForCausalLM", "ReDrafterForCausalLM"),
     ("1.2.1", "Qwen2ForCausalLM", "ReDrafterForQWenLM")],
)  # fmt: skip
def test_config_json_has_every_key_of_upstreams_converter(
    release: str, architecture: str, name: str, tiny: Path, tmp_path: Path
) -> None:
    make_redrafter(tmp_path / "drafter", seed=3)
    converted(tiny, tmp_path / "drafter", tmp_path / "out", release=release)
    config = json.loads((tmp_path / "out/config.json").read_text())
    told = {key: value for key, value in config.items() if key.startswith("redrafter")}
    assert told == {
        "redrafter_num_layers": 2, "redrafter_hidden_size": 64, "redrafter_exit_dim": 128,
        "redrafter_is_rnn": True, "redrafter_num_beams": 3, "redrafter_draft_len_per_beam": 4,
        "redrafter_greedy_search": True,
    }  # fmt: skip
    classes = opened(tmp_path / "drafter", release).config({}, {"architecture": architecture})
    assert classes == {"architecture": name, "base_model_architecture": architecture}
    assert config["base_model_architecture"] == "LlamaForCausalLM" and "max_draft_len" not in config


def test_a_release_without_a_class_for_the_target_is_refused(tmp_path: Path) -> None:
    make_redrafter(tmp_path / "drafter", seed=3)
    with pytest.raises(Unsupported, match=r"TensorRT-LLM 0\.18\.2 has no ReDrafter on Qwen2"):
        opened(tmp_path / "drafter", "0.18.2").config({}, {"architecture": "Qwen2ForCausalLM"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rnn_u.bias": None}, r"missing, too much, or of another shape: drafter\.rnn_u\.bias"),
        ({"lm_head.0.linear.weight": None}, r"another shape: drafter\.layers\.0\.linear\.weight\n"),
        (
            {"lm_head.2.weight": None},
            "with 128 values needs a matrix lm_head, there is none",
        ),
        ({"input_proj.weight": (128, 128)}, r"input_proj\.weight(.|\n)*not twice the hidden size"),
        (
            {"lm_heads.0.linear.bias": (128,)},
            r"not a ReDrafter: lm_heads\.0\.linear\.bias(.|\n)*once",
        ),
        ({"1.0.linear.weight": (4, 4)}, r"not a ReDrafter: 1\.0\.linear\.weight"),
    ],
)
def test_tensors_that_make_no_drafter_are_refused_by_name(
    changes: dict[str, tuple[int, ...] | None], words: str, tmp_path: Path
) -> None:
    tensors = make_redrafter(tmp_path, seed=3)
    for name, shape in changes.items():
        tensors |= {name: torch.zeros(shape)} if shape else {}
        tensors = {n: t for n, t in tensors.items() if shape or n != name}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=words):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("exit_dim", 96, "weights: exit_dim is 96, the tensors have 128"),
        ("rnn", False, "weights: rnn is False, the tensors have True"),
        ("num_draft_layers", 1, "weights: num_draft_layers is 1, the tensors have 2"),
        ("vocab_size", 32000, "weights: vocab_size is 32000, the tensors have 320"),
    ],
)
def test_a_config_of_another_drafter_is_refused(
    key: str, value: Any, words: str, tmp_path: Path
) -> None:
    make_redrafter(tmp_path, seed=3)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ConfigError, match=words):
        opened(tmp_path)


def test_a_pickle_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"rnn_u.weight": print}))
    with pytest.raises(ConfigError, match="cannot be read as plain tensors"):
        opened(tmp_path)


def test_a_drafter_of_another_target_is_refused_with_both_sizes(tiny: Path, tmp_path: Path) -> None:
    make_redrafter(tmp_path, seed=3, hidden=32, exit_dim=64, vocab=300)
    said = [
        str(r) for r in opened(tmp_path).check("target", read_model(open_source(tiny), "float32"))
    ]
    assert "trained for hidden states of 32 values, the target has 64" in said[0]
    assert "trained for a vocabulary of 300 tokens, the target has 320" in said[1]
    assert all("use a drafter that was trained for this target" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("drafter", "tp_size", "words"),
    [
        ({"exit_dim": 90}, 4, "ReDrafter's width of 90 does not divide by engine.tp_size"),
        ({"vocab": 330}, 4, "vocabulary, which its ReDrafter does not pad, of 330 does not divide"),
    ],
)
def test_ranks_that_do_not_divide_a_drafter_are_refused(
    drafter: dict[str, int], tp_size: int, words: str, tmp_path: Path
) -> None:
    target = make_llama(tmp_path / "t", seed=1, vocab_size=drafter.get("vocab", 320),
                        num_key_value_heads=4)  # fmt: skip
    make_redrafter(tmp_path / "drafter", seed=3, **drafter)
    with pytest.raises(Unsupported, match=words):
        converted(target, tmp_path / "drafter", tmp_path / "out", Parallel(tp_size))


def test_a_drafter_that_was_trained_with_another_recurrence_is_refused(tmp_path: Path) -> None:
    """An earlier `specpipe train redrafter` named none: its drafters are known by calibrations."""
    make_redrafter(tmp_path, seed=3)
    assert opened(tmp_path).net.is_rnn  # Apple's
    (tmp_path / "calibration.json").write_text(json.dumps({"conditional": [[0.5] * 10]}))
    with pytest.raises(ConfigError, match="recurrence is 'linear': only silu is") as refused:
        opened(tmp_path)
    assert "train it again" in str(refused.value.hint)
    make_redrafter(tmp_path, seed=3, recurrence="silu")
    assert opened(tmp_path).net.is_rnn
    make_redrafter(tmp_path, seed=3, recurrence="cubic")
    with pytest.raises(ConfigError, match="recurrence is 'cubic'"):
        opened(tmp_path, "")


def test_other_beams_make_the_checkpoint_stale(tiny: Path, tmp_path: Path) -> None:
    make_redrafter(tmp_path, seed=3)
    source, found = open_source(tiny), opened(tmp_path)
    other = replace(found, net=replace(found.net, num_beams=7))
    before, after = (Conversion(source, "float32", one).inputs() for one in (found, other))
    assert {name for name in before if before[name] != after[name]} == {"num_beams"}


def test_a_redrafter_is_no_medusa_heads(tmp_path: Path) -> None:
    make_redrafter(tmp_path, seed=3)
    with pytest.raises(Unsupported, match="this is a ReDrafter(.|\n)*method: redrafter"):
        open_heads(tmp_path)


def test_an_eagle_drafter_is_no_redrafter(tmp_path: Path) -> None:
    names = ("fc.weight", "layers.0.mlp.up_proj.weight")
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(Unsupported, match="an EAGLE drafter, not a ReDrafter(.|\n)*method: eagle"):
        opened(tmp_path)


def test_inspection_tells_beams_and_finds_what_is_wrong(tiny: Path, tmp_path: Path) -> None:
    make_redrafter(tmp_path / "drafter", seed=3)
    (rank,) = converted(tiny, tmp_path / "drafter", tmp_path / "out")
    found = inspect_folder(tmp_path / "out")
    assert (found.speculation.redrafter_num_beams, found.model.base) == (3, "LlamaForCausalLM")
    save_file(
        {**rank, "drafter.rnn_w.weight": torch.zeros(64, 32)}, tmp_path / "out/rank0.safetensors"
    )
    (defect,) = [d for d in inspect_folder(tmp_path / "out").defects if "rnn_w" in str(d)]
    assert "drafter.rnn_w.weight is 64 x 32, must be 64 x 64" in str(defect)
    file = tmp_path / "out/config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "redrafter_hidden_size": 32}))
    assert "redrafter_hidden_size is 32, but the hidden states" in str(
        inspect_folder(file.parent).defects
    )
    del config["redrafter_is_rnn"]
    file.write_text(json.dumps(config))
    assert "needs redrafter_is_rnn in config.json" in str(inspect_folder(file.parent).defects)


def test_a_drafter_without_an_output_layer_gets_a_copy_of_its_targets(
    tiny: Path, tmp_path: Path
) -> None:
    make_redrafter(tmp_path / "drafter", seed=3, exit_dim=64, own_output=False)
    converted(tiny, tmp_path / "drafter", tmp_path / "out")
    whole = load_file(tmp_path / "out/rank0.safetensors")
    assert torch.equal(whole["drafter.lm_head.weight"], whole["lm_head.weight"])
    assert inspect_folder(tmp_path / "out").defects == ()


def test_our_own_engine_needs_no_copy_and_no_class(tiny: Path, tmp_path: Path) -> None:
    make_redrafter(tmp_path / "drafter", seed=3, exit_dim=64, own_output=False)
    converted(tiny, tmp_path / "drafter", tmp_path / "out", release="")
    assert "drafter.lm_head.weight" not in load_file(tmp_path / "out/rank0.safetensors")
    assert json.loads((tmp_path / "out/config.json").read_text())["architecture"] == (
        "LlamaForCausalLM"
    )


@pytest.mark.parametrize("release", ["", "1.2.1"])
def test_a_token_map_is_for_our_own_engine(release: str, tiny: Path, tmp_path: Path) -> None:
    order = list(range(320))[::-1]
    make_redrafter(tmp_path / "drafter", seed=3, token_map=order)
    (rank,) = converted(tiny, tmp_path / "drafter", tmp_path / "out", release=release)
    assert ("drafter.token_map" in rank) == (not release)
    assert release or rank["drafter.token_map"].tolist() == order
    assert inspect_folder(tmp_path / "out").defects == ()


def test_the_output_layer_can_be_shared_only_if_config_json_tells_its_rows(tmp_path: Path) -> None:
    make_redrafter(tmp_path, seed=3, exit_dim=64, own_output=False)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match="config.json must give the target's vocab_size"):
        opened(tmp_path)


def test_medusa_heads_are_no_redrafter(tmp_path: Path) -> None:
    make_heads(tmp_path, seed=3)
    with pytest.raises(Unsupported, match="these are Medusa heads, not a ReDrafter"):
        opened(tmp_path)
