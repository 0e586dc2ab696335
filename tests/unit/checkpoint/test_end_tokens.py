"""End tokens: an answer ends where `transformers.generate` ends it, whichever file names them."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from specpipe.checkpoint.convert import Conversion, read_model
from specpipe.checkpoint.end_tokens import end_tokens
from specpipe.checkpoint.source import open_source
from specpipe.checkpoint.tokenizer import write_tokenizer
from specpipe.config.speculation import NoSpeculation
from specpipe.core.contracts import Sampling
from specpipe.core.errors import ConfigError
from specpipe.engine.openvino.engine import OpenVinoEngine
from specpipe.runtime.assembly import Runtime
from specpipe.runtime.tokens import load_tokenizer
from specpipe.speculate.decode import Limits
from specpipe.train.answers import generate
from specpipe.train.target import load_target
from specpipe.validate.reference import Reference

PROMPT = [5, 9, 40, 41, 42]
LENGTH = 16
Case = tuple[dict[str, Any] | None, dict[str, Any], int]  # generation, config, of the tokenizer


@dataclass(frozen=True)
class Said:
    """Two tokens of the answer that has no end, the first one sooner, and one that is not in it."""

    early: int
    late: int
    never: int


@pytest.fixture(scope="module")
def said(tiny: Path) -> Said:
    free = Reference(tiny).generate(PROMPT, LENGTH, ()).tokens
    new = [i for i, token in enumerate(free) if i >= 3 and token not in free[:i]]
    return Said(free[new[0]], free[new[2]], max(set(range(300)) - set(free)))


@pytest.fixture
def make_case(tiny: Path, tmp_path: Path) -> Callable[[Case], Path]:
    """Return a function that writes the tiny model with the given files."""

    def make(case: Case) -> Path:
        from transformers import AutoTokenizer

        generation, config, of_tokenizer = case
        folder = Path(shutil.copytree(tiny, tmp_path / "model"))
        (folder / "generation_config.json").unlink()
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        values = json.loads((folder / "config.json").read_text())
        del values["eos_token_id"]
        (folder / "config.json").write_text(json.dumps({**values, **config}))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(of_tokenizer)
        tokenizer.save_pretrained(folder)
        return folder

    return make


CASES: dict[str, Callable[[Said], Case]] = {
    "an int in generation_config.json": lambda s: ({"eos_token_id": s.early}, {}, s.never),
    "a list in generation_config.json": lambda s: (
        {"eos_token_id": [s.never, s.late, s.early]}, {}, s.never
    ),
    "generation_config.json before config.json": lambda s: (
        {"eos_token_id": [s.late]}, {"eos_token_id": s.early}, s.early
    ),
    "an int in config.json": lambda s: (None, {"eos_token_id": s.early}, s.never),
    "a list in config.json": lambda s: (None, {"eos_token_id": [s.never, s.early]}, s.never),
    "config.json before the tokenizer": lambda s: (None, {"eos_token_id": s.late}, s.early),
    "a negative token that stands for none": lambda s: (
        {"eos_token_id": [-1, s.early]}, {}, s.never
    ),
}  # fmt: skip
# Where transformers goes on for ever; what its users then hand to `generate`.
FALLBACKS: dict[str, Callable[[Said], Case]] = {
    "only in the tokenizer": lambda s: (None, {}, s.early),
    "only in the tokenizer, beside a generation_config.json": lambda s: (
        {"temperature": 0.7, "do_sample": True}, {"eos_token_id": None}, s.early
    ),
    "in config.json, beside a generation_config.json without": lambda s: (
        {"eos_token_id": None}, {"eos_token_id": s.early}, s.never
    ),
}  # fmt: skip


def transformers_answer(folder: Path, **options: Any) -> list[int]:
    """Return what `generate` of transformers answers greedily with the folder's own files."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).float()
    ids = torch.tensor([PROMPT])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=LENGTH,
        do_sample=False, pad_token_id=0, temperature=1.0, **options,
    )  # fmt: skip
    tokens: list[int] = out[0, len(PROMPT) :].tolist()
    return tokens


def served_answer(folder: Path, engine: OpenVinoEngine, out: Path) -> list[int]:
    """Return what the engine answers with the end tokens that a repository of the folder has."""
    source = open_source(folder)
    write_tokenizer(source, read_model(source, "float32"), out)
    sampling = Sampling(end_ids=load_tokenizer(out).end_ids)
    deployment = Runtime({"target": engine}, NoSpeculation())
    steps = deployment.decode(PROMPT, sampling, Limits(LENGTH))
    return [token for step in steps for token in step.tokens]


@pytest.mark.parametrize("name", CASES)
def test_serving_reference_and_training_end_where_transformers_does(
    name: str, said: Said, make_case, tiny_engine: OpenVinoEngine, tmp_path: Path
) -> None:
    folder = make_case(CASES[name](said))
    theirs = transformers_answer(folder)
    assert len(theirs) < LENGTH
    assert served_answer(folder, tiny_engine, tmp_path / "tokenizer") == theirs
    reference = Reference(folder)
    assert list(reference.generate(PROMPT, LENGTH, reference.end_ids).tokens) == theirs
    told_wrongly = reference.generate(PROMPT, LENGTH, (said.never,)).tokens
    assert list(told_wrongly) == theirs, "a repository with wrong end tokens must be noticed"
    target = load_target(folder, "float32", tmp_path / "digests.json")
    assert generate(target, [PROMPT], LENGTH, Sampling(), seed=0) == [theirs]


@pytest.mark.parametrize("name", FALLBACKS)
def test_where_transformers_would_go_on_for_ever_the_next_file_is_asked(
    name: str, said: Said, make_case, tiny_engine: OpenVinoEngine, tmp_path: Path
) -> None:
    folder = make_case(FALLBACKS[name](said))
    assert len(transformers_answer(folder)) == LENGTH and Reference(folder).end_ids == ()
    told = transformers_answer(folder, eos_token_id=said.early)
    assert len(told) < LENGTH
    assert served_answer(folder, tiny_engine, tmp_path / "tokenizer") == told


def test_a_text_model_within_another_names_its_end_tokens(tmp_path: Path) -> None:
    from transformers import GenerationConfig, LlavaConfig

    folder = tmp_path / "nested"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    for config in (
        {"text_config": {"model_type": "llama", "eos_token_id": [7, 8]}},
        {"eos_token_id": 9, "text_config": {"model_type": "llama", "eos_token_id": [7, 8]}},
        {"eos_token_id": None, "text_config": {"model_type": "llama", "eos_token_id": 7}},
    ):
        (folder / "config.json").write_text(json.dumps(config))
        theirs = GenerationConfig.from_model_config(LlavaConfig.from_dict(config)).eos_token_id
        ours = end_tokens(open_source(folder), of_tokenizer=3)
        assert list(ours) == (theirs if isinstance(theirs, list) else [theirs])


@pytest.mark.parametrize("value", ["</s>", [2, "</s>"], 2.0, True])
def test_an_end_token_that_is_no_number_is_refused(value: object, make_case) -> None:
    folder = make_case(({"eos_token_id": value}, {}, 4))
    with pytest.raises(ConfigError, match=r"generation_config\.json: 'eos_token_id' is "):
        end_tokens(open_source(folder), of_tokenizer=3)


def test_a_model_without_any_end_token_is_refused(make_case) -> None:
    folder = make_case(({"eos_token_id": []}, {"eos_token_id": -1}, 4))
    with pytest.raises(ConfigError, match="name no end-of-sequence token"):
        end_tokens(open_source(folder), of_tokenizer=None)


def test_an_end_token_outside_the_vocabulary_is_refused(make_case, tmp_path: Path) -> None:
    folder = make_case(({"eos_token_id": [4, 10**6]}, {}, 4))
    source = open_source(folder)
    with pytest.raises(ConfigError, match="end id 1000000, but the model's vocabulary has"):
        write_tokenizer(source, read_model(source, "float32"), tmp_path / "out")


def gguf_file(path: Path, **tokens: int) -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    for name, token in tokens.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("tokens", "ids"),
    [
        ({"eos": 2}, (2,)),
        ({"eot": 107, "eos": 1, "bos": 2}, (1, 107)),  # as conversions of Gemma have them
        ({"eos": 9, "eot": 9, "eom": 8}, (9, 8)),
        ({"bos": 1}, (3,)),
    ],
)
def test_a_gguf_file_names_ends_of_text_of_turn_and_of_message(
    tokens: dict[str, int], ids: Sequence[int], tmp_path: Path
) -> None:
    from specpipe.checkpoint.source import Source

    path = gguf_file(tmp_path / "model.gguf", **tokens)
    assert end_tokens(Source(path, (path,), {"eos_token_id": 2}, {}), of_tokenizer=3) == ids


def test_a_changed_generation_config_makes_the_checkpoint_stale(make_case) -> None:
    folder = make_case(({"eos_token_id": 4}, {}, 4))
    before = Conversion(open_source(folder), "float32").inputs()
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 5]}))
    assert Conversion(open_source(folder), "float32").inputs() != before


def test_facts_that_name_one_end_token_are_refused(tiny: Path, tmp_path: Path) -> None:
    source = open_source(tiny)
    write_tokenizer(source, read_model(source, "float32"), tmp_path)
    file = tmp_path / "tokenizer_facts.json"
    facts = json.loads(file.read_text())
    facts["end_id"] = facts.pop("end_ids")[0]
    file.write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="names one end token"):
        load_tokenizer(tmp_path)
