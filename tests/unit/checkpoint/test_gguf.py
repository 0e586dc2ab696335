"""GGUF files: the tensors, facts, tokens and logits of the safetensors that they were made from."""

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from specpipe.checkpoint.convert import Conversion, survey
from specpipe.checkpoint.gguf.header import read_header
from specpipe.checkpoint.gguf.judge import load_judge
from specpipe.checkpoint.gguf.tensors import GgufTensors
from specpipe.checkpoint.gguf.tokenizer import load_gguf_tokenizer
from specpipe.checkpoint.source import open_source
from specpipe.checkpoint.tokenizer import read_vocabulary, write_tokenizer
from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.core.model import ModelConfig
from specpipe.plan.make_plan import make_plan
from specpipe.validate.reference import Reference
from tests.helpers.engine_steps import item
from tests.helpers.families import make_family
from tests.helpers.gguf_files import make_gguf
from tests.helpers.models import TEXT

pytestmark = pytest.mark.slow
OLD = int(transformers.__version__.split(".")[0]) < 5
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("LlamaForCausalLM", "plain", {}),
    ("LlamaForCausalLM", "tied", {}),
    ("LlamaForCausalLM", "one group", {}),
    ("LlamaForCausalLM", "wide heads", {}),
    ("LlamaForCausalLM", "llama3 rope", {}),
    ("LlamaForCausalLM", "linear rope", {}),
    ("LlamaForCausalLM", "attention bias", {}),
    ("Qwen2ForCausalLM", "plain", {}),
    ("Qwen2MoeForCausalLM", "plain", {}),
    ("Qwen3ForCausalLM", "tied", {}),
    ("Gemma2ForCausalLM", "window", {"query_pre_attn_scalar": 24}),
    ("Gemma2ForCausalLM", "low caps", {"query_pre_attn_scalar": 24}),
    ("Phi3ForCausalLM", "window", {}),
    ("Phi3ForCausalLM", "long rope", {}),
    ("Phi3ForCausalLM", "share", {}),
    ("Starcoder2ForCausalLM", "plain", {}),
    ("GPT2LMHeadModel", "plain", {}),
    ("FalconForCausalLM", "7b", {"tie_word_embeddings": True}),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a Llama whose positions are scaled as Llama 3's, and whose head is."""
    folder = tmp_path_factory.mktemp("gguf") / "model"
    return make_family(folder, "LlamaForCausalLM", "llama3 rope", tie_word_embeddings=True)


@pytest.mark.parametrize(("name", "variant", "changes"), CASES)
def test_tensors_facts_and_logits_are_those_of_the_folder(
    name: str, variant: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = make_family(tmp_path / "model", name, variant, **changes)
    path = make_gguf(tmp_path / "model.gguf", folder)
    tensors = load_file(folder / "model.safetensors")
    with closing(GgufTensors(path)) as reader:
        assert reader.names() == tensors.keys()
        for key, tensor in tensors.items():
            assert reader.shape(key) == tuple(tensor.shape)
            torch.testing.assert_close(reader.read(key), tensor, rtol=0, atol=3e-7, msg=key)
    assert _meaning(survey(open_source(path), "float32")) == _meaning(
        survey(open_source(folder), "float32")
    )
    tokens = np.random.default_rng(0).integers(3, 300, 300).tolist()
    if name == "Qwen2MoeForCausalLM" and OLD:
        with pytest.raises(Unsupported, match="reads no experts from GGUF"):
            Reference(path)
        return
    theirs = Reference(folder).logits(tokens)
    np.testing.assert_allclose(Reference(path).logits(tokens), theirs, atol=2e-4)


def _meaning(model: ModelConfig) -> ModelConfig:
    """Return the facts without spellings of equal meaning."""
    scaling = {k: v for k, v in (model.rotary_scaling or {}).items() if k != "type"}
    rounded = {k: pytest.approx(v) if isinstance(v, float) else v for k, v in scaling.items()}
    epsilon = pytest.approx(model.norm_epsilon, rel=1e-6)
    return replace(
        model, rotary_scaling=rounded or None, norm_epsilon=epsilon,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_quantised_matrices_and_embeddings_are_those_that_transformers_reads(
    kind: str, plain: Path, tmp_path: Path
) -> None:
    path = make_gguf(tmp_path / "model.gguf", plain, kind=kind)
    expected = load_judge(path).state_dict()
    with closing(GgufTensors(path)) as reader:
        for name in reader.names():
            torch.testing.assert_close(reader.read(name), expected[name], rtol=0, atol=1e-6)


def test_rows_are_those_of_the_whole_tensor(plain: Path, tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "model.gguf", plain, kind="Q8_0")
    with closing(GgufTensors(path)) as reader:
        for name in sorted(reader.names()):
            whole, rows = reader.read(name), reader.shape(name)[0]
            for begin, end in ((0, 1), (1, 7), (5, rows - 3), (rows - 1, rows)):
                assert torch.equal(reader.rows(name, begin, end), whole[begin:end]), name


def test_a_file_is_converted_and_runs_with_the_logits_of_its_folder(
    plain: Path, tmp_path: Path, make_engine
) -> None:
    """Scaled positions from a tensor, a tied head, an embedding of more rows than tokens."""
    path = make_gguf(tmp_path / "model.gguf", plain)
    engine = make_engine(path)
    tokens = np.random.default_rng(1).integers(3, 300, 90).tolist()
    (found,) = engine.step([item(engine.open(), tokens)])
    np.testing.assert_allclose(found.logits, Reference(plain).logits(tokens), atol=1e-3)
    np.testing.assert_allclose(found.logits, Reference(path).logits(tokens), atol=1e-3)


def test_the_tokenizer_is_that_of_the_folder(plain: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    path, out = make_gguf(tmp_path / "model.gguf", plain), tmp_path / "out"
    out.mkdir()
    Conversion(open_source(path), "float32").write(out, lambda done, total: None)
    ours = Tokenizer.from_file(str(out / "tokenizer/tokenizer.json"))
    theirs = Tokenizer.from_file(str(plain / "tokenizer.json"))
    for text in (TEXT, "x = [1, 22, 333]\n\n\tif  y:", "<|user|>hi<|end|>", "  two  spaces "):
        assert ours.encode(text).ids == theirs.encode(text).ids
        assert ours.decode(ours.encode(text).ids) == theirs.decode(theirs.encode(text).ids)
    facts = json.loads((out / "tokenizer/tokenizer_facts.json").read_text())
    assert facts["end_ids"] == [0]


def test_a_run_of_a_file_is_planned(plain: Path, tmp_path: Path, write_config) -> None:
    path = make_gguf(tmp_path / "model.gguf", plain, kind="Q8_0")
    plan = make_plan(
        read_config(write_config(target={"model": str(path)})), Workspace(tmp_path, "tiny")
    )
    assert not plan.rejections and plan.models["target"].num_hidden_layers == 2
    assert plan.models["target"].tie_word_embeddings
    assert (plan.models["target"].rotary_scaling or {})["factor"] == 8.0


def test_a_head_that_is_in_the_file_is_not_tied(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = make_gguf(tmp_path / "model.gguf", folder)
    assert not survey(open_source(path), "float32").tie_word_embeddings


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.add_type("adapter"), "of type 'adapter', not a model"),
        (lambda w: w.add_uint16("split.count", 3), "one of 3 parts(.|\n)*llama-gguf-split"),
        (lambda w: w.add_expert_count(8), "mixture of experts"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.array([1, 5, 1, 5], np.float32)),
         "no scaling of Llama 3's rule"),
    ],
)  # fmt: skip
def test_files_that_are_no_model_of_ours_are_named(
    change: Any, words: str, tiny: Path, tmp_path: Path
) -> None:
    path = make_gguf(tmp_path / "model.gguf", tiny, change=change)
    with pytest.raises(Unsupported, match=words):
        open_source(path)


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(Unsupported, match="architecture 'mamba' cannot be read(.|\n)*qwen3"):
        open_source(tmp_path / "model.gguf")


def test_a_damaged_file_is_named(tiny: Path, tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "model.gguf", tiny)
    whole = path.read_bytes()
    for content, words in (
        (whole[:-5000], "ends behind the last of its"),
        (whole[:1000], "not a whole GGUF file"),
        (b"", "not a whole GGUF file"),
        (b"GGUX" + whole[4:], "does not begin with GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of git-lfs"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=words):
            open_source(path)


def test_unknown_tensors_are_named(tiny: Path, tmp_path: Path) -> None:
    def add(writer: Any) -> None:
        writer.add_tensor("blk.0.attn_sinks.weight", np.zeros(4, np.float32))

    path = make_gguf(tmp_path / "model.gguf", tiny, change=add)
    with pytest.raises(ConfigError, match=r"unexpected: blk\.0\.attn_sinks\.weight"):
        survey(open_source(path), "float32")


def test_a_header_is_read_without_its_lists_of_text(tiny: Path, tmp_path: Path) -> None:
    header = read_header(make_gguf(tmp_path / "model.gguf", tiny))
    assert header.facts["tokenizer.ggml.tokens"] == ()
    assert header.counts["tokenizer.ggml.tokens"] == 320
    assert header.fact("block_count") == 2 and len(header.facts["tokenizer.ggml.token_type"]) == 320


def test_a_model_of_mixed_sizes_is_refused(tiny: Path, tmp_path: Path) -> None:
    def change(writer: Any) -> None:
        writer.kv_data[0].pop("llama.attention.head_count")
        writer.add_head_count([4, 2])

    path = make_gguf(tmp_path / "model.gguf", tiny, change=change)
    with pytest.raises(Unsupported, match=r"layers differ in llama\.attention\.head_count"):
        open_source(path)


def retyped(rule: str) -> Any:
    def change(writer: Any) -> None:
        writer.kv_data[0].pop("tokenizer.ggml.pre")
        writer.add_tokenizer_pre(rule)

    return change


def test_a_rule_of_splitting_text_that_is_not_known_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "model.gguf", tiny, change=retyped("deepseek-llm"))
    with pytest.raises(Unsupported, match="splits text by the rule 'deepseek-llm'"):
        read_vocabulary(open_source(path))


def test_digits_are_split_first_where_the_file_states_it(tiny: Path, tmp_path: Path) -> None:
    path, out = make_gguf(tmp_path / "m.gguf", tiny, change=retyped("smollm")), tmp_path / "out"
    out.mkdir()
    write_tokenizer(source := open_source(path), survey(source, "float32"), out)
    held = json.loads((out / "tokenizer.json").read_text())
    kinds = [part["type"] for part in held["pre_tokenizer"]["pretokenizers"]]
    assert kinds == ["Digits", "ByteLevel"]


def sentencepiece(path: Path, **flags: bool) -> Path:
    """Write a file with a vocabulary of sentencepiece's, and nothing else."""
    from gguf import GGUFWriter

    words = ["▁", "a", "b", "▁a", "ab", "▁ab", "▁▁"]
    octets = [f"<0x{octet:02X}>" for octet in range(256)]
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *octets, *words])
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in (9, 8, 7, 3, 2, 1, 4)])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(words)])
    for name, token in {"bos": 1, "eos": 2, "unknown": 0}.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    for name, flag in flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", flag)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("flags", "ids"),
    [
        ({}, [1, 264, 262]),  # <s> ▁ab ▁a
        ({"add_bos_token": False}, [264, 262]),
        ({"add_eos_token": True}, [1, 264, 262, 2]),
        ({"add_space_prefix": False}, [1, 263, 262]),  # <s> ab ▁a
    ],
)
def test_the_flags_of_a_sentencepiece_vocabulary_decide(
    flags: dict[str, bool], ids: list[int], tmp_path: Path
) -> None:
    tokenizer = load_gguf_tokenizer(sentencepiece(tmp_path / "model.gguf", **flags))
    backend = tokenizer.backend_tokenizer
    assert backend.encode("ab a").ids == ids
    assert backend.decode(backend.encode("ab a").ids) == "ab a"
    assert backend.get_vocab_size() == 266
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_the_llm_api_reads_no_gguf(tiny: Path, tmp_path: Path, write_config) -> None:
    path = make_gguf(tmp_path / "model.gguf", tiny)
    engine = {"backend": "llmapi", "gpu": "H100-SXM", "dtype": "bfloat16"}
    engine |= {"max_input_len": 100, "max_seq_len": 200}
    config = read_config(write_config(target={"model": str(path)}, engine=engine))
    plan = make_plan(config, Workspace(tmp_path, "tiny"))
    assert any("reads no GGUF files" in str(reason) for reason in plan.rejections)


def test_plan_refuses_a_rule_of_splitting_that_is_not_known(
    tiny: Path, tmp_path: Path, write_config
) -> None:
    path = make_gguf(tmp_path / "model.gguf", tiny, change=retyped("deepseek-llm"))
    config = read_config(write_config(target={"model": str(path)}))
    plan = make_plan(config, Workspace(tmp_path, "tiny"))
    assert any("'deepseek-llm'" in str(reason) for reason in plan.rejections)
