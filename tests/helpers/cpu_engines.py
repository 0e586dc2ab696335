"""Checkpoints and engines of the CPU backend, made from a folder of Hugging Face."""

from pathlib import Path

from specpipe.checkpoint.convert import Conversion
from specpipe.checkpoint.source import open_source
from specpipe.core.artifacts import read_model_config
from specpipe.core.model import ModelConfig, Quantization
from specpipe.engine.backend import BuildRequest
from specpipe.engine.openvino.backend import OpenVinoBackend
from specpipe.engine.openvino.engine import OpenVinoEngine
from tests.helpers.build_requests import build_request


def convert(source: Path, folder: Path) -> Path:
    """Convert a model to float32 into `folder`/checkpoint."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    Conversion(open_source(source), "float32").write(checkpoint, lambda done, total: None)
    return checkpoint


def request_for(model: ModelConfig, **changes: object) -> BuildRequest:
    """Return the request for a small float32 engine, changed as asked."""
    values = {"max_batch_size": 1, "max_input_len": 100, "max_seq_len": 200, **changes}
    return build_request(model, **values)


def build(source: Path, folder: Path) -> Path:
    """Convert and compile a model; return `folder`/engine."""
    checkpoint, engine = convert(source, folder), folder / "engine"
    engine.mkdir()
    OpenVinoBackend().build(request_for(read_model_config(checkpoint)), checkpoint, engine)
    return engine


def load_compiled(checkpoint: Path, out: Path, quantization: Quantization) -> OpenVinoEngine:
    """Compile a quantised checkpoint into the new folder `out` and load it."""
    out.mkdir()
    model = read_model_config(checkpoint)
    request = request_for(model, quantization=quantization, max_input_len=255, max_seq_len=256)
    OpenVinoBackend().build(request, checkpoint, out)
    return OpenVinoBackend().load(out)
