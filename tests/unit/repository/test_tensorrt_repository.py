"""The repository for GPUs: upstream's tensors and parameters by release, and our values."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from specpipe.config.run_config import RunConfig, read_config
from specpipe.config.speculation import Medusa, ReDrafter, Speculation
from specpipe.config.upstream_methods import Eagle
from specpipe.core.artifacts import Workspace
from specpipe.core.contracts import Role
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.core.model import ModelConfig
from specpipe.plan.memory import KvBudget
from specpipe.plan.plan import make_requests
from specpipe.repository.description import read_endpoint
from specpipe.repository.library import LIBRARY, library_files
from specpipe.repository.placement import read_placement
from specpipe.repository.render import parse
from specpipe.repository.signature import (
    LLMAPI,
    MODELS,
    served_signature,
    signatures,
    table_of,
)
from specpipe.repository.write import LLM_API, RepositoryPlan, write_repository
from specpipe.run.run import Run
from specpipe.run.stages import build
from specpipe.runtime.tokens import load_tokenizer
from tests.helpers.models import TEMPLATE

# From upstream's own config.pbtxt of each release: how many inputs, outputs and parameters a model
# has, and the digest of all of them, marks included.
UPSTREAM = json.loads(Path(__file__).with_name("upstream_tensors.json").read_text())
RELEASES = {"1x": "1.2.1", "019": "0.19.0", "018": "0.18.2"}
LLAMA = ModelConfig(
    architecture="LlamaForCausalLM", dtype="bfloat16", hidden_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4, head_size=16, intermediate_size=128,
    vocab_size=32001, max_position_embeddings=4096, norm_epsilon=1e-5, rotary_base=1e4,
)  # fmt: skip
DRAFT, LOOKAHEAD = (
    read_config(Path(f"model_configs/{name}.yaml"))
    for name in ("llama70b_draft7b", "llama8b_lookahead")
)
LOOKAHEAD = replace(LOOKAHEAD, engine=replace(LOOKAHEAD.engine, tp_size=1, pp_size=1))
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes the repository of a config and returns its folder."""

    def make(
        config: RunConfig,
        release: str = "1.2.1",
        budgets: Mapping[Role, KvBudget] | None = None,
        **engine: Any,
    ) -> Path:
        config = replace(config, engine=replace(config.engine, **engine))
        roles: list[Role] = list(config.models())
        folders = {role: tmp_path / role for role in roles}
        for folder in (*folders.values(), tmp_path / "tokenizer"):
            folder.mkdir(exist_ok=True)
            (folder / "rank0.engine").write_text("bytes")
        out = tmp_path / f"repository{release}"
        out.mkdir()
        plan = RepositoryPlan(
            config, folders, tmp_path / "tokenizer",
            make_requests(config, dict.fromkeys(roles, LLAMA)), release, Path("/models"),
            budgets or {},
        )  # fmt: skip
        write_repository(plan, out)
        return out

    return make


def read(repository: Path, model: str = "tensorrt_llm") -> pb.ModelConfig:
    return parse((repository / model / "config.pbtxt").read_text())


def value(repository: Path, name: str, model: str = "tensorrt_llm") -> str:
    text: str = read(repository, model).parameters[name].string_value
    return text


def digest(lines: list[str]) -> list[object]:
    return [len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]]


def tensors(found: Any) -> list[str]:
    """Return one line a tensor of a parsed config.pbtxt."""
    lines = []
    for tensor in found:
        marks = [
            mark
            for mark, is_set in (
                ("optional", getattr(tensor, "optional", False)),
                ("scalar", tensor.HasField("reshape")),
                ("ragged", getattr(tensor, "allow_ragged_batch", False)),
            )
            if is_set
        ]
        kind = pb.DataType.Name(tensor.data_type)
        lines.append(f"{tensor.name} {kind} {list(tensor.dims)} {' '.join(marks)}".strip())
    return lines


@pytest.mark.parametrize("table", RELEASES)
def test_the_engines_models_are_upstreams_tensor_for_tensor(table: str, write: Write) -> None:
    repository = write(DRAFT, RELEASES[table])
    for model in ("tensorrt_llm", "tensorrt_llm_draft"):
        config = read(repository, model)
        expected = UPSTREAM[table]["tensorrt_llm"]
        assert config.name == model and config.backend == "tensorrtllm"
        assert digest(tensors(config.input)) == expected["inputs"]
        assert digest(tensors(config.output)) == expected["outputs"]
        assert digest(sorted(config.parameters)) == expected["parameters"]


def required_text(line: str) -> str:
    """Return a tensor as upstream declares it: our models take a conversation instead of a text."""
    text = line.startswith(("text_input ", "QUERY "))
    return line.removesuffix(" optional") if text else line


@pytest.mark.parametrize("table", RELEASES)
@pytest.mark.parametrize("model", MODELS[:2] + MODELS[3:])
def test_our_models_take_all_that_upstreams_take(table: str, model: str, write: Write) -> None:
    config = read(write(DRAFT, RELEASES[table]), model)
    expected = UPSTREAM[table][model]
    for side, found in (("inputs", config.input), ("outputs", config.output)):
        lines = tensors(found[: expected[side][0]])
        assert digest([required_text(line) for line in lines]) == expected[side]
    newest = {tensor.name for tensor in served_signature(model).inputs}
    if model in MODELS[:2]:
        assert {tensor.name for tensor in config.input} >= newest


@pytest.mark.parametrize("table", RELEASES)
def test_no_placeholder_is_left(table: str, write: Write) -> None:
    repository = write(DRAFT, RELEASES[table])
    for file in repository.glob("*/config.pbtxt"):
        assert "${" not in file.read_text(), file


def test_every_release_has_a_table() -> None:
    assert [table_of(release) for release in ("0.17.0", "0.18.2", "0.19.0", "0.20.0", "1.2.1")] == [
        "018", "018", "019", "1x", "1x",
    ]  # fmt: skip
    assert set(signatures("1x")) > set(MODELS)


def test_draft_and_target_are_called_one_response_a_request(write: Write) -> None:
    repository = write(DRAFT)
    for model in ("tensorrt_llm", "tensorrt_llm_draft"):
        assert not read(repository, model).model_transaction_policy.decoupled
        assert value(repository, "enable_kv_cache_reuse", model) == "true"
        assert value(repository, "gpt_model_type", model) == "inflight_fused_batching"
    for model in MODELS[:2]:
        assert read(repository, model).model_transaction_policy.decoupled
        assert value(repository, "tensorrt_llm_draft_model_name", model) == "tensorrt_llm_draft"
        assert value(repository, "num_draft_tokens", model) == "5"


def test_two_engines_share_the_kv_cache_by_tokens(write: Write) -> None:
    repository = write(DRAFT)
    for model in ("tensorrt_llm", "tensorrt_llm_draft"):
        # 8 sequences of 4096 tokens and 6 under verification, in blocks of 64
        assert value(repository, "max_tokens_in_paged_kv_cache", model) == str(8 * 4160)
        assert value(repository, "kv_cache_free_gpu_mem_fraction", model) == "0.9"
    alone = write(LOOKAHEAD, "1.2.0")
    assert value(alone, "max_tokens_in_paged_kv_cache") == ""
    assert value(alone, "kv_cache_free_gpu_mem_fraction") == "0.9"
    planned = write(DRAFT, "1.1.0", budgets={"target": KvBudget(640, 0.9)})
    assert value(planned, "max_tokens_in_paged_kv_cache") == "640"


@pytest.mark.parametrize(("length", "chunks"), [(8192, "false"), (16384, "true")])
def test_prompts_above_a_step_are_read_in_chunks(length: int, chunks: str, write: Write) -> None:
    engine = replace(DRAFT.engine, max_seq_len=length)
    repository = write(replace(DRAFT, engine=engine))
    for model in ("tensorrt_llm", "tensorrt_llm_draft"):
        assert value(repository, "enable_chunked_context", model) == chunks


def test_an_engine_that_guesses_by_itself_streams(write: Write) -> None:
    repository = write(LOOKAHEAD)
    assert read(repository).model_transaction_policy.decoupled
    assert value(repository, "decoding_mode") == "lookahead"
    sizes = [value(repository, f"lookahead_{n}") for n in
             ("window_size", "ngram_size", "verification_set_size")]  # fmt: skip
    assert sizes == ["7", "7", "7"]
    assert value(repository, "engine_decoupled", "ensemble") == "true"
    assert not (repository / "tensorrt_llm_draft").exists()


def with_speculation(options: Speculation) -> RunConfig:
    return replace(LOOKAHEAD, speculation=options)


def test_a_medusa_tree_is_written_in_upstreams_braces(write: Write) -> None:
    tree = ((0,), (1,), (0, 0), (0, 2))
    repository = write(with_speculation(Medusa("medusa", "heads", 4, tree)))
    assert value(repository, "medusa_choices") == "{0}, {1}, {0, 0}, {0, 2}"
    assert value(repository, "decoding_mode") == "medusa"
    assert value(repository, "multi_block_mode") == "false"


@pytest.mark.parametrize("release", ["1.2.1", "0.18.2"])
def test_a_redrafter_is_told_by_its_mode_alone(release: str, write: Write) -> None:
    repository = write(with_speculation(ReDrafter("redrafter", "heads")), release)
    assert value(repository, "decoding_mode") == "redrafter"
    assert value(repository, "medusa_choices") == ""


@pytest.mark.parametrize("release", ["0.18.2", "1.2.1"])
def test_an_eagle_tree_is_written_in_upstreams_braces(write: Write, release: str) -> None:
    tree = ((0,), (1,), (0, 0))
    repository = write(with_speculation(Eagle("eagle", "drafter").with_tree(tree)), release)
    assert value(repository, "eagle_choices") == "{0}, {1}, {0, 0}"
    assert value(repository, "medusa_choices") == ""
    assert value(repository, "decoding_mode") == "eagle"
    assert value(repository, "multi_block_mode") == "false"


def test_a_tree_that_grows_is_refused(write: Write) -> None:
    with pytest.raises(Unsupported, match="dynamic: TensorRT-LLM wants one tree"):
        write(with_speculation(Medusa("medusa", "heads", 4, "dynamic")))


def test_lookahead_is_refused_where_triton_cannot_configure_it(write: Write) -> None:
    with pytest.raises(Unsupported, match="before TensorRT-LLM 0.19"):
        write(LOOKAHEAD, "0.18.2")


def test_several_engines_of_several_ranks_have_an_orchestrator(write: Write) -> None:
    repository = write(DRAFT)
    placement = read_placement(repository)
    assert placement is not None and placement.orchestrator and placement.spawns
    assert (placement.world_size, placement.gpus) == (1, 4)
    assert placement.models == ("tensorrt_llm", "tensorrt_llm_draft")
    assert value(repository, "gpu_device_ids") == "0,1,2,3"
    assert value(repository, "participant_ids") == ""


def test_workers_that_mpirun_starts_have_ranks_of_their_own(write: Write) -> None:
    config = replace(DRAFT, serving=replace(DRAFT.serving, spawn_processes=False))
    repository = write(config)
    placement = read_placement(repository)
    assert placement is not None and placement.world_size == 9
    assert value(repository, "participant_ids", "tensorrt_llm_draft") == "1,2,3,4"
    assert value(repository, "participant_ids") == "5,6,7,8"


def test_one_engine_of_several_ranks_is_led_by_its_first(write: Write) -> None:
    placement = read_placement(write(LOOKAHEAD, tp_size=2))
    assert placement is not None and not placement.orchestrator and placement.world_size == 2


def test_engines_lie_where_the_server_sees_them(write: Write) -> None:
    repository = write(DRAFT)
    for model, role in (("tensorrt_llm", "target"), ("tensorrt_llm_draft", "draft")):
        assert value(repository, "gpt_model_path", model) == f"/models/{model}/1/{role}"
        assert (repository / model / "1" / role / "rank0.engine").exists()
        assert not (repository / model / "1/model.py").exists()  # the backend is C++


def test_queues_and_processes_are_bounded(write: Write) -> None:
    repository = write(DRAFT)
    engine = read(repository)
    assert engine.max_batch_size == 8 and list(engine.dynamic_batching.preferred_batch_size) == [8]
    assert engine.dynamic_batching.default_queue_policy.max_queue_size == 64
    text = read(repository, "tensorrt_llm_bls")
    assert text.instance_group[0].count == 8 and text.max_batch_size == 1
    assert text.dynamic_batching.default_queue_policy.max_queue_size == 64
    many = write(DRAFT, "1.2.0", max_batch_size=256)
    assert read(many, "ensemble").instance_group[0].count == 16


def test_the_bias_is_as_long_as_the_padded_output_layer(write: Write) -> None:
    assert value(write(DRAFT), "padded_vocab_size", "ensemble") == "32004"  # 32001 on four ranks


def test_the_models_bring_the_code_that_they_need(write: Write) -> None:
    """They import with only numpy and tokenizers installed, as in NVIDIA's container."""
    repository = write(DRAFT)
    program = """
import sys, types
sys.modules["triton_python_backend_utils"] = types.SimpleNamespace(
    TRITONSERVER_RESPONSE_COMPLETE_FINAL=1)
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BANNED: raise ImportError("not in the container: " + name)
BANNED = {"openvino", "torch", "transformers", "click", "tritonclient", "yaml", "safetensors"}
sys.meta_path.insert(0, Refuse())
import importlib.util
for name in ("ensemble", "tensorrt_llm_bls", "preprocessing", "postprocessing"):
    spec = importlib.util.spec_from_file_location(name, f"{sys.argv[1]}/{name}/1/model.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
from specpipe.runtime import loops
from specpipe.runtime.triton import bls, metrics, text
assert text.__file__.startswith(sys.argv[1]), text.__file__
"""
    subprocess.run([sys.executable, "-c", program, str(repository)], check=True)
    assert (repository / LIBRARY / "specpipe/core/contracts.py").exists()


def test_the_library_has_no_module_of_an_engine() -> None:
    names = {str(file) for file in library_files()}
    assert "runtime/loops.py" in names
    assert not any(name.startswith(("engine", "checkpoint", "runtime/assembly")) for name in names)


def _build_llmapi(write_config: Callable[..., Path], tmp_path: Path, **keys: object) -> Run:
    """Return a run of the LLM API that was built the whole way."""
    config = read_config(
        write_config(
            engine={"backend": "llmapi", "gpu": "H100-SXM", "dtype": "bfloat16", "tp_size": 1,
                    "max_input_len": 100, "max_seq_len": 200},
            speculation={"method": "prompt_lookup"},
            **keys,
        )
    )  # fmt: skip
    run = Run(config, Workspace(tmp_path / "work", config.name))
    build(run)
    return run


def test_the_llm_api_is_packaged_around_its_model_yaml(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """Built the whole way: no weights are converted, and the code is upstream's."""
    run = _build_llmapi(write_config, tmp_path)
    repository = run.workspace.repository
    model = read(repository)
    table = signatures()[LLMAPI]
    assert [t.name for t in model.input] == [t.name for t in table.inputs]
    assert (model.backend, model.max_batch_size) == ("python", 0)
    assert model.model_transaction_policy.decoupled
    assert "NGram" in (repository / "tensorrt_llm/1/model.yaml").read_text()
    assert [p.name for p in repository.iterdir() if p.is_dir()] == ["tensorrt_llm"]
    placement = read_placement(repository)
    assert placement is not None and (placement.world_size, placement.gpus) == (1, 1)
    assert build(Run(run.config, run.workspace))[-1].fresh
    endpoint = read_endpoint(repository)
    assert load_tokenizer(repository / endpoint.tokenizer).count("hello") > 0
    assert endpoint.chats and endpoint.template is not None
    assert endpoint.template.chat.templates == {"default": TEMPLATE}
    assert endpoint.template.control == ("<|assistant|>", "<|user|>", "<|end|>")


def test_a_model_that_is_not_on_this_disk_is_packaged_without_its_tokenizer(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    target = {"model": "meta-llama/Llama-3.1-8B-Instruct"}
    run = _build_llmapi(write_config, tmp_path, target=target)
    endpoint = read_endpoint(run.workspace.repository)
    assert (endpoint.tokenizer, endpoint.chats, endpoint.template) == ("", False, None)
    assert endpoint.text.tensors.max_tokens == "sampling_param_max_tokens"


def test_a_repository_without_a_description_is_to_be_packaged_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not built(.|\n)*specpipe build"):
        read_endpoint(tmp_path)
    (tmp_path / "tensorrt_llm_bls").mkdir()
    (tmp_path / "tensorrt_llm_bls/config.pbtxt").write_text('name: "tensorrt_llm_bls"')
    with pytest.raises(ConfigError, match=r"is not described(.|\n)*specpipe package"):
        read_endpoint(tmp_path)


def test_the_llm_apis_code_is_found_in_the_container(tmp_path: Path) -> None:
    upstream = tmp_path / "upstream"
    upstream.mkdir()
    (upstream / "helpers.py").write_text("NAME = 'theirs'")
    (upstream / "model.py").write_text(
        "from helpers import NAME\nclass TritonPythonModel:\n    name = NAME\n"
    )
    shim = tmp_path / "model.py"
    shim.write_text(LLM_API)
    program = "import runpy, sys; print(runpy.run_path(sys.argv[1])['TritonPythonModel'].name)"

    def run(folder: Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", program, str(shim)],
            env={"LLMAPI_MODEL_DIR": str(folder)}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert run(upstream).stdout == "theirs\n"
    assert "serve this repository in a Triton container" in run(tmp_path / "none").stderr
