"""Fixtures: a tiny random Llama and the artifacts built from it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # more threads than cores spin in torch: 5 times the CPU
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from specpipe.checkpoint.convert import Conversion
from specpipe.checkpoint.drafter import DrafterSource
from specpipe.checkpoint.eagle3 import open_eagle3
from specpipe.checkpoint.medusa import open_heads
from specpipe.checkpoint.redrafter import open_redrafter
from specpipe.checkpoint.source import open_source
from specpipe.config.speculation import ReDrafter
from specpipe.core.artifacts import read_model_config
from specpipe.core.model import Dtype
from specpipe.engine.openvino.backend import OpenVinoBackend
from specpipe.engine.openvino.engine import OpenVinoEngine
from tests.helpers.build_requests import build_request
from tests.helpers.models import SMOLLM2, TEXT, make_llama
from tests.helpers.mutants import plant_from_environment

plant_from_environment()  # before any test module imports what it replaces


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first: real model, then servers; skip the former without it."""
    items.sort(key=lambda item: ("model" not in item.keywords, "e2e" not in item.keywords))
    if SMOLLM2.is_dir():
        return
    for item in items:
        if "model" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="run scripts/fetch-model first"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Hugging Face folder of a random 2-layer Llama with 4 heads in 2 groups."""
    return make_llama(tmp_path_factory.mktemp("tiny") / "target", seed=1)


@pytest.fixture(scope="session")
def tiny_draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return another random model with the same tokenizer: a draft that is mostly rejected."""
    return make_llama(tmp_path_factory.mktemp("draft") / "draft", seed=2, num_hidden_layers=1)


MakeEngine = Callable[..., OpenVinoEngine]


@pytest.fixture(scope="session")
def make_engine(tmp_path_factory: pytest.TempPathFactory) -> MakeEngine:
    """Return a function that converts, compiles and loads a Hugging Face folder."""

    def make(
        source: Path,
        dtype: Dtype = "float32",
        quantization: str = "none",
        max_seq_len: int = 256,
        heads: Path | None = None,
        max_draft_len: int | None = None,
        draft_vocab_size: int = 0,
        redrafter: Path | None = None,
        eagle3: Path | None = None,
        **changes: object,  # further fields of the build request
    ) -> OpenVinoEngine:
        folder = tmp_path_factory.mktemp("engine")
        checkpoint, engine = folder / "checkpoint", folder / "engine"
        checkpoint.mkdir()
        engine.mkdir()
        found: DrafterSource | None = None
        if redrafter:
            found = open_redrafter(redrafter, ReDrafter("redrafter", ""), release="")
        elif eagle3:
            found = open_eagle3(eagle3)
        elif heads:
            compact = open_heads(heads)
            found = compact.in_full(max_draft_len) if max_draft_len else compact
        Conversion(open_source(source), dtype, found).write(checkpoint, lambda done, total: None)
        values = {
            "dtype": dtype, "quantization": quantization, "max_batch_size": 8,
            "max_input_len": max_seq_len - 1, "max_seq_len": max_seq_len, "method": "medusa",
            "draft_nodes": 64, "draft_vocab_size": draft_vocab_size, **changes,
        }  # fmt: skip
        request = build_request(read_model_config(checkpoint), **values)  # type: ignore[arg-type]
        backend = OpenVinoBackend()
        backend.build(request, checkpoint, engine)
        return backend.load(engine)

    return make


@pytest.fixture(scope="session")
def tiny_engine(tiny: Path, make_engine: MakeEngine) -> OpenVinoEngine:
    """Return the tiny model, loaded in float32."""
    return make_engine(tiny)


@pytest.fixture(scope="session")
def draft_engine(tiny_draft: Path, make_engine: MakeEngine) -> OpenVinoEngine:
    """Return the tiny draft, loaded in float32."""
    return make_engine(tiny_draft)


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a seeded generator."""
    return np.random.default_rng(0)


@pytest.fixture
def write_config(tmp_path: Path, tiny: Path, tiny_draft: Path) -> Callable[..., Path]:
    """Return a function that writes a run's YAML; the given sections replace the default."""

    def write(**sections: object) -> Path:
        values: dict[str, object] = {
            "name": "tiny",
            "target": {"model": str(tiny)},
            "engine": {"backend": "openvino", "max_input_len": 100, "max_seq_len": 200},
            **sections,
        }
        path = tmp_path / "run.yaml"
        path.write_text(json.dumps(values, indent=1))
        return path

    return write


@pytest.fixture
def sample_text() -> str:
    """Return the text that the tiny tokenizer was trained on."""
    return TEXT


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Emulate a machine with an H100 and TensorRT-LLM 1.2.1, by mock executables.

    Returns the folder of the mocks; its `container` subfolder is for programs in the container.
    """
    standins = Path(__file__).parent / "standins"
    place = tmp_path / "machine"
    site = place / "site/tensorrt_llm-1.2.1.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: 1.2.1\n")
    for folder, names in (("bin", ("nvidia-smi", "trtllm-build")), ("container", ())):
        (place / folder).mkdir()
        for name in names:
            (place / folder / name).symlink_to(standins / name)
    monkeypatch.setenv("PATH", f"{place / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{place / 'site'}:{os.environ.get('PYTHONPATH', '')}")
    return place


@pytest.fixture
def container_machine(gpu_machine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Move `trtllm-build` of the GPU machine into the container of a mock docker."""
    (gpu_machine / "bin/trtllm-build").rename(gpu_machine / "container/trtllm-build")
    (gpu_machine / "bin/docker").symlink_to(Path(__file__).parent / "standins/docker")
    monkeypatch.setenv("STANDIN_CONTAINER_PATH", str(gpu_machine / "container"))
    monkeypatch.setenv("STANDIN_LOG", str(gpu_machine / "docker.log"))
    return gpu_machine
