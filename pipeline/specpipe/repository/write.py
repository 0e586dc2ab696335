"""Writing a model repository: five models, tokenizer and engines, complete in one folder."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from specpipe.config import RunConfig
from specpipe.contracts import Role
from specpipe.repository.render import render
from specpipe.repository.signature import MODELS, signatures

FORMAT = "1"  # raise it when the same engines must give another repository
_MODULES = {
    "ensemble": "text",
    "tensorrt_llm_bls": "text",
    "tensorrt_llm": "engine",
    "preprocessing": "preprocessing",
    "postprocessing": "postprocessing",
}
_TOKENIZER = "../../preprocessing/1/tokenizer"  # seen from a model's version folder


@dataclass(frozen=True)
class RepositoryPlan:
    """What a repository is made from."""

    config: RunConfig
    engines: Mapping[Role, Path]
    tokenizer: Path


def repository_options(config: RunConfig) -> dict[str, str]:
    """Return the options that decide what is written, beside the engines and the tokenizer."""
    engine, serving = config.engine, config.serving
    return {
        "backend": engine.backend,
        "speculation": json.dumps(asdict(config.speculation), sort_keys=True),
        "max_batch_size": str(engine.max_batch_size),
        "max_input_len": str(engine.max_input_len),
        "max_seq_len": str(engine.max_seq_len),
        "max_queue_size": str(serving.max_queue_size),
        "decoupled": str(serving.decoupled),
    }


def write_repository(plan: RepositoryPlan, out: Path) -> None:
    """Write the five models into the empty folder `out`.

    Engine files are hard-linked where the file system allows it, else copied.
    """
    for model in MODELS:
        version = out / model / "1"
        version.mkdir(parents=True)
        text = render(
            model,
            signatures()[model],
            _parameters(model, plan),
            decoupled=_decoupled(model, plan.config),
        )
        (out / model / "config.pbtxt").write_text(text, encoding="utf-8")
        (version / "model.py").write_text(_shim(model), encoding="utf-8")
    _link(plan.tokenizer, out / "preprocessing/1/tokenizer")
    for role, engine in plan.engines.items():
        _link(engine, out / "tensorrt_llm/1/engines" / role)


def _decoupled(model: str, config: RunConfig) -> bool:
    """Tell whether a model may send several responses; the engine always does."""
    if model == "tensorrt_llm":
        return True
    return model in ("ensemble", "tensorrt_llm_bls") and config.serving.decoupled


def _parameters(model: str, plan: RepositoryPlan) -> dict[str, str]:
    options = repository_options(plan.config)
    lengths = {key: options[key] for key in ("max_input_len", "max_seq_len")}
    if model == "tensorrt_llm":
        roles = {role: f"engines/{role}" for role in plan.engines}
        serving = {
            k: options[k] for k in ("backend", "speculation", "max_batch_size", "max_queue_size")
        }
        return {**lengths, **serving, "engines": json.dumps(roles, sort_keys=True)}
    folder = "tokenizer" if model == "preprocessing" else _TOKENIZER
    return {**lengths, "tokenizer_dir": folder}


def _shim(model: str) -> str:
    module = f"specpipe.repository.models.{_MODULES[model]}"
    return (
        f'"""Triton\'s entry to `{model}`; the code is in {module}."""\n\n'
        f"from {module} import TritonPythonModel as TritonPythonModel\n"
    )


def _link(source: Path, target: Path) -> None:
    """Copy a folder by hard links; a file system without them gets copies."""
    for file in sorted(f for f in source.rglob("*") if f.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, place)
        except OSError:
            shutil.copyfile(file, place)
