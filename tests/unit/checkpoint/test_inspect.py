"""What `specpipe inspect` sees: facts and defects, in checkpoints and engines of any converter."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from specpipe.checkpoint.convert import Conversion
from specpipe.checkpoint.families import FAMILIES
from specpipe.checkpoint.inspection.describe import inspection_text
from specpipe.checkpoint.inspection.inspect import inspect_folder
from specpipe.checkpoint.medusa import open_heads
from specpipe.checkpoint.quantized.formats import Quantizing
from specpipe.checkpoint.redrafter import open_redrafter
from specpipe.checkpoint.source import open_source
from specpipe.cli import main
from specpipe.config.speculation import ReDrafter
from specpipe.core.artifacts import Manifest
from specpipe.core.divisibility import Parallel
from specpipe.core.errors import ConfigError
from specpipe.core.publishing import write_publish
from tests.helpers.calibrated_models import write_quantised
from tests.helpers.cpu_engines import build
from tests.helpers.families import WORLDS, make_family
from tests.helpers.models import make_heads, make_llama, make_redrafter

RANKS = [Parallel(), Parallel(2, 1), Parallel(1, 2), Parallel(4, 2)]


def no_progress(done: int, total: int) -> None:
    pass


Make = Callable[..., Path]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Llama of four layers, whose vocabulary does not divide by two."""
    folder = tmp_path_factory.mktemp("source") / "hf"
    return make_llama(folder, seed=1, vocab_size=321, num_hidden_layers=4)


@pytest.fixture(scope="module")
def make(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a function that gives a copy, of its own, of a converted checkpoint."""
    made: dict[tuple[Parallel, str], Path] = {}

    def checkpoint(parallel: Parallel = RANKS[0], heads: str = "none") -> Path:
        """`heads`: none, compact (they share the output layer) or full."""
        if (parallel, heads) not in made:
            out = tmp_path_factory.mktemp("made") / "checkpoint"
            out.mkdir()
            found = None
            if heads != "none":
                make_heads(out.parent / "heads", seed=2, heads=2)
                found = open_heads(out.parent / "heads")
                found = found.in_full(7) if heads == "full" else found
            Conversion(open_source(source), "float32", found, parallel=parallel).write(
                out, no_progress
            )
            made[parallel, heads] = out
        copy = tmp_path_factory.mktemp("copy") / "checkpoint"
        return Path(shutil.copytree(made[parallel, heads], copy))

    return checkpoint


def defects(folder: Path, *, tensors: bool = False) -> list[str]:
    return [str(d) for d in inspect_folder(folder, no_progress if tensors else None).defects]


def change_config(folder: Path, **changes: object) -> None:
    """Change keys of config.json; None removes one."""
    raw = {**json.loads((folder / "config.json").read_text()), **changes}
    kept = {key: value for key, value in raw.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def change_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], rank: int = 0
) -> None:
    file = folder / f"rank{rank}.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


@pytest.mark.parametrize("heads", ["none", "compact", "full"])
@pytest.mark.parametrize("parallel", RANKS, ids=lambda p: f"tp{p.tp_size}-pp{p.pp_size}")
def test_what_we_convert_has_no_defect(make: Make, parallel: Parallel, heads: str) -> None:
    folder = make(parallel, heads)
    found = inspect_folder(folder, no_progress)
    assert found.defects == ()
    assert found.kind == "TensorRT-LLM checkpoint"
    assert [file.name for file in found.files] == [
        f"rank{i}.safetensors" for i in range(parallel.world_size)
    ]
    assert found.unchecked == ("whether mlp.fc and mlp.gate are swapped: their shapes are equal",)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_is_checked_by_names_and_shapes(architecture: str, tmp_path: Path) -> None:
    world = WORLDS[architecture]
    source = make_family(tmp_path / "hf", architecture, next(iter(world.variants)))
    if world.rewrite:
        world.rewrite(source)
    (tmp_path / "out").mkdir()
    Conversion(open_source(source), "float32").write(tmp_path / "out", no_progress)
    found = inspect_folder(tmp_path / "out")
    assert found.defects == () and len(found.unchecked) == 2  # values, and fc against gate
    change_tensors(tmp_path / "out", lambda t: t.pop("transformer.layers.1.attention.dense.weight"))
    assert "lacks transformer.layers.1.attention.dense.weight" in defects(tmp_path / "out")[0]


def test_scales_that_are_missing_are_a_defect(tmp_path: Path) -> None:
    source = make_llama(tmp_path / "hf", seed=1, hidden_size=128, head_dim=32)
    folder = write_quantised(source, tmp_path / "out", Quantizing("fp8", "fp8"))
    assert defects(folder) == []
    at = "transformer.layers.1."
    change_tensors(folder, lambda t: t.pop(f"{at}attention.kv_cache_scaling_factor"))
    assert f"{at}attention: the KV cache is quantised, but has no scale" in defects(folder)[0]

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.startswith(f"{at}mlp.proj.") and "scaling" in n]:
            del tensors[name]

    change_tensors(folder, drop)
    assert f"{at}mlp.proj: quantised weights without scales" in defects(folder)[0]


@pytest.mark.parametrize("weights", ["fp8", "int4_awq", "int8_sq", "nvfp4"])
def test_quantised_checkpoints_of_ours_have_no_defect(weights: Any, tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    source = make_llama(tmp_path / "hf", seed=1, **sizes)
    folder = write_quantised(source, tmp_path / "out", Quantizing(weights))
    found = inspect_folder(folder, no_progress)
    assert found.defects == () and found.model.quantization is not None


def test_the_facts_are_those_of_the_config(make: Make) -> None:
    found = inspect_folder(make(RANKS[1], "full"))
    model, speculation = found.model, found.speculation
    assert (model.architecture, model.base, model.dtype) == (
        "MedusaForCausalLM",
        "llama",
        "float32",
    )
    assert (model.num_hidden_layers, model.num_attention_heads, model.num_key_value_heads) == (
        4,
        4,
        2,
    )
    assert (model.vocab_size, model.head_size, model.rotary_base) == (321, 16, 10000.0)
    assert (speculation.num_medusa_heads, speculation.max_draft_len) == (2, 7)
    assert found.ranks is not None and (found.ranks.tp_size, found.ranks.pp_size) == (2, 1)
    text = inspection_text(found)
    assert "MedusaForCausalLM on llama, float32, quantization none" in text
    assert "4 layers, 4 heads in 2 groups of 16, hidden 64, inner 128, vocabulary 321" in text
    assert "2 Medusa heads, residual layers: 1, 7 drafted tokens a step" in text
    assert text.endswith("no defect was found")


def test_missing_and_unexpected_tensors_are_named_with_their_rank(make: Make) -> None:
    folder = make(RANKS[1])
    change_tensors(folder, lambda t: t.pop("transformer.layers.1.mlp.fc.weight"), rank=1)
    change_tensors(folder, lambda t: t.update(extra=torch.zeros(1)), rank=1)
    first, second = defects(folder)
    assert "rank 1 lacks transformer.layers.1.mlp.fc.weight" in first
    assert "rank 1 has extra, which the config does not require" in second


def test_a_vocabulary_that_is_not_padded_is_recognised(make: Make) -> None:
    folder = make(RANKS[1])
    change_tensors(
        folder, lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:160]}), rank=1
    )
    (said,) = defects(folder)
    assert "lm_head.weight is 160 x 64, must be 161 x 64" in said
    assert "the vocabulary of 321 is not padded to a multiple of tp_size" in said


def test_heads_that_lie_on_the_last_stage_alone_are_a_defect(make: Make) -> None:
    folder = make(RANKS[2], "full")

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.startswith("medusa")]:
            del tensors[name]

    change_tensors(folder, drop, rank=0)
    (said,) = defects(folder)
    assert "rank 0 lacks medusa_heads.0.lm_head.weight" in said and "and 2 more" in said


def test_layers_that_are_counted_through_all_stages_are_recognised(make: Make) -> None:
    folder = make(RANKS[2])

    def renumber(tensors: dict[str, torch.Tensor]) -> None:
        for index in (1, 0):
            for name in [n for n in tensors if f".layers.{index}." in n]:
                tensors[name.replace(f".layers.{index}.", f".layers.{index + 2}.")] = tensors.pop(
                    name
                )

    change_tensors(folder, renumber, rank=1)
    assert all(
        "layers count from 0 in the file of every pipeline stage" in d for d in defects(folder)
    )
    assert len(defects(folder)) == 2


def test_another_type_than_the_configs_is_a_defect_for_upstream_only_warns(make: Make) -> None:
    folder = make()
    change_tensors(
        folder, lambda t: t.update({"transformer.ln_f.weight": t["transformer.ln_f.weight"].half()})
    )
    assert "transformer.ln_f.weight is float16, its config states float32" in defects(folder)[0]


@pytest.mark.parametrize(
    ("scaling", "lost"),
    [
        ({"rope_type": "llama3"}, "llama3, but lacks factor, low_freq_factor, high_freq_factor"),
        ({"type": "linear"}, "linear, but lacks factor"),
        ({"type": "yarn", "factor": 4.0}, "yarn, but lacks original_max_position_embeddings"),
    ],
)
def test_lost_rope_factors_are_a_defect(make: Make, scaling: dict[str, object], lost: str) -> None:
    folder = make()
    change_config(folder, rotary_scaling=scaling)
    assert lost in defects(folder)[0]


def test_a_llama3_without_its_scaling_is_remarked(make: Make) -> None:
    folder = make()
    change_config(folder, rotary_base=500000.0, max_position_embeddings=131072)
    assert "its factors were lost" in " ".join(inspect_folder(folder).remarks)


def test_rank_files_must_be_those_of_the_mapping(make: Make) -> None:
    folder = make(RANKS[1])
    (folder / "rank1.safetensors").rename(folder / "rank2.safetensors")
    said = " ".join(defects(folder))
    assert "rank2.safetensors: mapping has 2 ranks only" in said
    assert "rank1.safetensors: not there, but mapping has 2 ranks" in said
    change_config(folder, mapping={"tp_size": 2, "pp_size": 1, "world_size": 4})
    assert "world_size is 4, but tp_size 2 x pp_size 1 x cp_size 1 make 2" in " ".join(
        defects(folder)
    )


def test_ranks_that_do_not_divide_the_model_are_a_defect(make: Make) -> None:
    folder = make()
    change_config(folder, mapping={"tp_size": 1, "pp_size": 3, "world_size": 3})
    assert "4 layers do not divide" in " ".join(defects(folder))


@pytest.mark.parametrize("key", ["num_medusa_heads", "max_draft_len", "model_type"])
def test_a_medusa_config_without_a_key_is_a_defect(make: Make, key: str) -> None:
    folder = make(RANKS[0], "full")
    change_config(folder, **{key: None})
    assert key in " ".join(defects(folder))


def test_a_file_cut_short_is_a_defect_and_the_others_are_still_read(make: Make) -> None:
    folder = make(RANKS[1])
    file = folder / "rank0.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    (said,) = defects(folder)
    assert "rank0.safetensors: not a whole safetensors file" in said and str(folder) not in said
    assert inspect_folder(folder).files[1].tensors is not None


def header(**begins: int) -> bytes:
    """Return a file of two tensors of one byte, which begin at the given places."""
    entries = {
        name: {"dtype": "U8", "shape": [1], "data_offsets": [at, at + 1]}
        for name, at in begins.items()
    }
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(max(begins.values()) + 1)


@pytest.mark.parametrize(
    "content",
    [
        header(a=0, b=0),
        header(a=0, b=2),
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
        (2**63).to_bytes(8, "little"),
    ],
    ids=["overlap", "hole", "nested without end", "a header longer than the file"],
)
def test_a_header_that_cannot_be_is_a_defect(make: Make, content: bytes) -> None:
    folder = make()
    (folder / "rank0.safetensors").write_bytes(content)
    assert "rank0.safetensors: not a whole safetensors file" in defects(folder)[0]
    (folder / "config.json").write_text("[" * 200_000)
    with pytest.raises(ConfigError, match="not valid JSON"):
        inspect_folder(folder)


def test_damaged_files_do_not_stay_open(make: Make) -> None:
    folder = make()
    (folder / "rank0.safetensors").write_bytes(b"\x04\0\0\0\0\0\0\0junk")
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert "not a whole safetensors file" in defects(folder)[0]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_every_value_is_read_if_asked(make: Make) -> None:
    folder = make(RANKS[1])

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["transformer.ln_f.weight"][3] = float("nan")
        tensors["lm_head.weight"][-1] = 1.0  # the row that pads 321 to 322

    change_tensors(folder, spoil, rank=1)
    assert defects(folder) == []
    said = defects(folder, tensors=True)
    assert "transformer.ln_f.weight has 1 values that are not finite" in " ".join(said)
    assert "lm_head.weight has padding that is not zero" in " ".join(said)
    assert "is not what was written" in " ".join(said)


def test_a_tied_head_is_remarked_when_values_are_read(make: Make) -> None:
    found = inspect_folder(make(), no_progress)
    assert "lm_head is a copy of the embedding" in " ".join(found.remarks)


def test_upstreams_config_without_our_keys_is_read_with_its_defaults(make: Make) -> None:
    folder = make(RANKS[1])
    change_config(folder, head_size=None, tie_word_embeddings=None)
    (folder / "arithmetic.json").unlink()
    found = inspect_folder(folder)
    assert found.defects == () and found.model.head_size == 16
    assert "no head_size" in " ".join(found.remarks)


def test_an_unknown_architecture_is_described_and_said_to_be_unchecked(make: Make) -> None:
    folder = make()
    change_config(folder, architecture="SkyworkForCausalLM")
    (folder / "arithmetic.json").unlink()
    found = inspect_folder(folder)
    assert found.defects == ()
    assert "SkyworkForCausalLM of another converter is not known here" in " ".join(found.unchecked)


def test_quantised_weights_are_checked_by_their_size(make: Make) -> None:
    folder = make()
    name = "transformer.layers.0.mlp.fc.weight"

    def pack(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = torch.zeros(64, 64, dtype=torch.int8)
        tensors[name.replace("weight", "weights_scaling_factor")] = torch.ones(1, 128)

    change_tensors(folder, pack)
    assert "is int8, but config.json names no quantisation" in defects(folder)[0]
    change_config(folder, quantization={"quant_algo": "W4A16_AWQ"})
    assert defects(folder) == []
    change_tensors(folder, lambda t: t.update({name: torch.zeros(64, 60, dtype=torch.int8)}))
    assert "which is not 128 x 64 in the 4 bits of W4A16_AWQ" in defects(folder)[0]


EAGLE = {
    "architecture": "EagleForCausalLM", "num_eagle_layers": 4, "max_non_leaves_per_layer": 10,
    "max_draft_len": 63, "eagle_net_config": {"architecture": "LlamaForCausalLM"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "tensor"), [(EAGLE, "eagle_nets.0.drafter.fc.weight")], ids=["EAGLE"]
)
def test_other_drafters_are_looked_at_as_far_as_they_are_known(
    make: Make, keys: dict[str, object], tensor: str
) -> None:
    folder = make()
    change_config(folder, **keys)
    assert "has no tensor of the drafter" in defects(folder)[0]
    change_tensors(folder, lambda t: t.update({tensor: torch.zeros(2, 2)}))
    found = inspect_folder(folder)
    assert found.defects == () and "drafter's tensors" in " ".join(found.unchecked)
    change_tensors(folder, lambda t: t.pop("transformer.layers.0.mlp.fc.weight"))
    assert "rank 0 lacks transformer.layers.0.mlp.fc.weight" in defects(folder)[0]
    lost = list(keys)[1]
    change_config(folder, **{lost: None})
    assert f"needs {lost} in config.json" in defects(folder)[0]


@pytest.mark.parametrize("own_output", [False, True])
def test_a_redrafter_of_the_cpu_engine_may_share_the_output_layer(
    own_output: bool, tmp_path: Path
) -> None:
    out = tmp_path / "checkpoint"
    out.mkdir()
    source = open_source(make_llama(tmp_path / "hf", seed=1))
    make_redrafter(tmp_path / "drafter", seed=2, exit_dim=64, own_output=own_output)
    found = open_redrafter(tmp_path / "drafter", ReDrafter("redrafter", "drafter"), release="")
    Conversion(source, "float32", found).write(out, no_progress)
    assert defects(out) == []
    change_tensors(out, lambda t: t.pop("drafter.layers.0.linear.weight"))
    assert "rank 0 lacks drafter.layers.0.linear.weight" in defects(out)[0]


def test_a_redrafter_of_tensorrt_needs_its_own_output_layer(tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    out.mkdir()
    source = open_source(make_llama(tmp_path / "hf", seed=1))
    make_redrafter(tmp_path / "drafter", seed=2, exit_dim=64, own_output=False)
    options = ReDrafter("redrafter", "drafter")
    found = open_redrafter(tmp_path / "drafter", options, release="1.2.1")
    Conversion(source, "float16", found).write(out, no_progress)
    assert defects(out) == []
    change_tensors(out, lambda t: t.pop("drafter.lm_head.weight"))
    assert "rank 0 lacks drafter.lm_head.weight" in defects(out)[0]


def test_an_eagle_checkpoint_with_stages_is_a_defect(make: Make) -> None:
    folder = make(RANKS[2])
    change_config(folder, **EAGLE)
    assert "EAGLE has no pipeline stages, but pp_size is 2" in " ".join(defects(folder))


# --- engines -------------------------------------------------------------------------------------


@pytest.fixture
def engine(make: Make, tmp_path: Path) -> Path:
    """Return the folder of a Medusa engine as trtllm-build leaves it, for two ranks."""
    pretrained = json.loads((make(RANKS[1], "full") / "config.json").read_text())
    build = {
        "max_input_len": 100, "max_seq_len": 207, "max_batch_size": 4, "max_beam_width": 1,
        "max_num_tokens": 512, "kv_cache_type": "PAGED", "max_draft_len": 7,
        "speculative_decoding_mode": 4, "gather_context_logits": False,
        "plugin_config": {"use_paged_context_fmha": True},
    }  # fmt: skip
    raw = {"version": "1.2.1", "pretrained_config": pretrained, "build_config": build}
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({**raw, "pretrained_config": {**pretrained, "dtype": "float16"}})
    )
    for rank in range(2):
        (folder / f"rank{rank}.engine").write_bytes(b"plan")
    return folder


def change_build(folder: Path, **changes: object) -> None:
    raw = json.loads((folder / "config.json").read_text())
    change_config(folder, build_config={**raw["build_config"], **changes})


def test_an_engine_is_described_from_its_config(engine: Path) -> None:
    found = inspect_folder(engine)
    assert found.defects == ()
    assert (found.kind, found.version, found.speculation.mode) == (
        "TensorRT-LLM engine", "1.2.1", "medusa",
    )  # fmt: skip
    text = inspection_text(found)
    assert "batch 4, input 100, sequence 207, tokens a step 512, beams 1, KV cache PAGED" in text
    assert "served only by TensorRT-LLM 1.2.1" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"speculative_decoding_mode": 1}, "was built in the mode none: its drafts are computed"),
        ({"speculative_decoding_mode": 32}, "was built in the mode eagle"),
        ({"speculative_decoding_mode": 3}, "'speculative_decoding_mode' is 3"),
        ({"max_draft_len": 0}, "built without room for drafts"),
        ({"max_draft_len": 9}, "9 in build_config and 7 by pretrained_config"),
        ({"max_beam_width": 2}, "no speculation with beams"),
        ({"kv_cache_type": "CONTINUOUS"}, "medusa needs a paged one"),
        ({"max_num_tokens": 31}, "4 sequences of 7 drafted tokens take 32 a step"),
    ],
)
def test_an_engine_that_would_not_speculate_has_a_defect(
    engine: Path, changes: dict[str, object], words: str
) -> None:
    change_build(engine, **changes)
    assert words in " ".join(defects(engine))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plugin_config": {"use_paged_context_fmha": False}}, "needs paged context attention"),
        ({"gather_context_logits": True}, "switches the reuse of KV blocks off"),
    ],
)
def test_a_target_of_a_draft_model_must_reuse_blocks(
    engine: Path, changes: dict[str, object], words: str
) -> None:
    raw = json.loads((engine / "config.json").read_text())
    plain = {
        k: v
        for k, v in raw["pretrained_config"].items()
        if "medusa" not in k and k != "max_draft_len"
    }
    change_config(engine, pretrained_config={**plain, "architecture": "LlamaForCausalLM"})
    change_build(engine, speculative_decoding_mode=2)
    assert defects(engine) == []
    change_build(engine, **changes)
    assert words in " ".join(defects(engine))


def test_missing_and_empty_engine_files_are_defects(engine: Path) -> None:
    (engine / "rank0.engine").unlink()
    (engine / "rank1.engine").write_bytes(b"")
    assert "rank1.engine is empty" in defects(engine)[0]
    assert "rank0.engine: not there, but mapping has 2 ranks" in defects(engine)[1]


def test_files_that_differ_from_our_manifest_are_defects(engine: Path, tmp_path: Path) -> None:
    out = tmp_path / "published"
    write_publish(engine, out, Manifest("engine", {}))
    assert defects(out) == []
    (out / "rank0.engine").write_bytes(b"shorter")
    assert "rank0.engine has 7 bytes instead of 4, according to specpipe.json" in defects(out)[0]


def test_our_cpu_engine_is_described_too(tiny: Path, tmp_path: Path) -> None:
    found = inspect_folder(build(tiny, tmp_path))
    assert found.kind == "OpenVINO engine" and found.defects == ()
    assert found.limits is not None and found.limits.max_seq_len == 200


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_damaged_files_give_defects_or_one_sentence(make: Make, engine: Path, seed: int) -> None:
    """Bytes are flipped, lost and inserted in config.json and in a header."""
    rng = random.Random(seed)
    folder = make(RANKS[1], "full") if seed % 3 else engine
    names = ["config.json"] if seed % 3 == 0 else ["config.json", "rank0.safetensors"]
    file = folder / rng.choice(names)
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice([1, 3, 20])):
        at = rng.randrange(min(len(content), 3000))
        how = rng.randrange(3)
        if how == 0:
            content[at] = rng.randrange(256)
        elif how == 1:
            del content[at : at + rng.choice([1, 8, 500])]
        else:
            content[at:at] = rng.randbytes(rng.choice([1, 9]))
    file.write_bytes(content[: rng.choice([len(content), len(content) // 2, 10, 0])])
    try:
        found = inspect_folder(folder)
    except ConfigError as error:
        assert str(folder) in str(error)
    else:
        inspection_text(found)


JUNK = [None, -1, 0, 1.5, "x", [], {}, True, 10**30, [[]]]


def replaced(raw: dict[str, Any], junk: object) -> Iterator[dict[str, Any]]:
    """Yield `raw` with junk in the place of each value, of each table's too."""
    for key, value in raw.items():
        yield {**raw, key: junk}
        if isinstance(value, dict):
            yield from ({**raw, key: inner} for inner in replaced(value, junk))


@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_no_value_of_any_key_brings_it_down(make: Make, engine: Path, junk: object) -> None:
    for folder in (make(RANKS[1], "full"), engine):
        whole = json.loads((folder / "config.json").read_text())
        for raw in replaced(whole, junk):
            (folder / "config.json").write_text(json.dumps(raw))
            inspection_text(inspect_folder(folder))


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda p: None, "no such folder"),
        (lambda p: p.mkdir(), "neither a checkpoint nor an engine"),
        (lambda p: (p / "target").mkdir(parents=True) or (p / "target/config.json").touch(),
         "did you mean"),
        (lambda p: p.mkdir() or (p / "config.json").write_text("{"), "not valid JSON"),
        (lambda p: p.mkdir() or (p / "config.json").write_text('{"architectures": ["X"]}'),
         "a Hugging Face model"),
    ],
    ids=["nothing", "empty", "above", "no JSON", "Hugging Face"],
)  # fmt: skip
def test_a_folder_that_is_neither_is_refused_in_a_sentence(
    tmp_path: Path, prepare: Callable[[Path], Any], words: str
) -> None:
    prepare(tmp_path / "folder")
    with pytest.raises(ConfigError, match=words):
        inspect_folder(tmp_path / "folder")


# --- the command ---------------------------------------------------------------------------------


def test_the_command_prints_json_and_exits_with_five_if_there_are_defects(make: Make) -> None:
    folder = make()
    whole = CliRunner().invoke(main, ["inspect", str(folder), "--json"])
    assert whole.exit_code == 0 and json.loads(whole.stdout)["defects"] == []
    change_config(folder, vocab_size=None)
    broken = CliRunner().invoke(main, ["inspect", str(folder), "--json"])
    assert broken.exit_code == 5 and "config.json lacks vocab_size" in broken.stdout
    assert ": 1 defect\n" in broken.stderr
    assert CliRunner().invoke(main, ["inspect", str(folder / "none")]).exit_code == 2


def test_an_algorithm_that_the_tensors_do_not_have_is_a_defect(make: Make, tmp_path: Path) -> None:
    plain = make()
    change_config(plain, quantization={"quant_algo": "FP8"})
    assert "quant_algo is FP8, but no weight is quantised" in defects(plain)[0]
    change_config(plain, quantization={"quant_algo": "W8A16"})  # quantised by trtllm-build
    assert defects(plain) == []
    source = make_llama(tmp_path / "hf", seed=1, hidden_size=128, head_dim=32)
    folder = write_quantised(source, tmp_path / "out", Quantizing("fp8"))
    change_config(folder, quantization={"quant_algo": "W8A8_SQ_PER_CHANNEL"})
    said = " ".join(defects(folder))
    assert "float8_e4m3fn weights, but quant_algo is W8A8_SQ_PER_CHANNEL" in said


@pytest.mark.parametrize("key", ["quant_algo", "kv_cache_quant_algo"])
@pytest.mark.parametrize("name", ["W3A16", 8, ["FP8"]])
def test_an_unknown_algorithm_is_a_defect(key: str, name: object, make: Make) -> None:
    folder = make()
    change_config(folder, quantization={key: name})
    said = " ".join(defects(folder))
    assert f"'quantization.{key}' is {name!r}, which TensorRT-LLM does not know" in said


@pytest.mark.parametrize("parallel", [RANKS[1], RANKS[3]], ids=lambda p: f"tp{p.tp_size}")
@pytest.mark.parametrize("tensors", [False, True])
def test_a_rank_that_is_a_copy_of_another_is_a_defect(
    parallel: Parallel, tensors: bool, make: Make
) -> None:
    folder = make(parallel)
    shutil.copyfile(folder / "rank0.safetensors", folder / "rank1.safetensors")
    assert "rank 1 is a copy of rank 0" in " ".join(defects(folder, tensors=tensors))


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("rotary_base", "10000", "a number"),
        ("norm_epsilon", [], "a number"),
        ("hidden_act", 5, "a text"),
        ("attn_bias", "no", "true or false"),
        ("mapping", [1], "an object"),
        ("quantization", "FP8", "an object"),
        ("rotary_scaling", "linear", "an object"),
        ("moe", 8, "an object"),
        ("rotary_embedding_dim", "16", "a whole number"),
        ("position_embedding_type", {}, "a text"),
    ],
)
def test_a_value_of_another_type_is_a_defect(
    key: str, value: object, wanted: str, make: Make
) -> None:
    folder = make()
    change_config(folder, **{key: value})
    assert f"config.json: '{key}' is {value!r}: must be {wanted}" in " ".join(defects(folder))


def test_a_rope_factor_of_another_type_is_a_defect(make: Make) -> None:
    folder = make()
    change_config(folder, rotary_scaling={"rope_type": "linear", "factor": "4"})
    assert "'rotary_scaling.factor' is '4': must be a number" in defects(folder)[0]
