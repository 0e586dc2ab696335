"""Write a model repository: models, tokenizer and engines in one folder."""

import os
import shutil
from pathlib import Path

from specpipe.config.run_config import RunConfig
from specpipe.core.endpoint import dump_endpoint
from specpipe.engine.fronts.table import FRONTS
from specpipe.repository.description import DESCRIPTION, KEY_PARAMETER, PARAMETER
from specpipe.repository.inputs import RepositoryPlan, drives_engines
from specpipe.repository.library import LIBRARY, library_digest, write_library
from specpipe.repository.placement import write_placement
from specpipe.repository.render import parse, render, to_text
from specpipe.repository.tokenizer_info import INFO, INFO_PATH, tokenizer_info
from specpipe.repository.topology import (
    ModelEntry,
    engine_options,
    entries,
)
from specpipe.runtime.assembly import load_backend

__all__ = [
    "FORMAT",
    "RepositoryPlan",
    "budget_options",
    "repository_options",
    "write_repository",
]

FORMAT = "11"  # increase it when equal engines must produce a different repository


def repository_options(config: RunConfig) -> dict[str, str]:
    """Return the options that determine the files, without the engines and the tokenizer."""
    engine, serving = config.engine, config.serving
    return {
        **engine_options(config),
        "max_input_len": str(engine.max_input_len),
        "max_seq_len": str(engine.max_seq_len),
        "decoupled": str(serving.decoupled),
        "loop": serving.loop,
        **({"front": serving.front} if serving.front in FRONTS else {}),
        **(_driving_options(config) if drives_engines(config) else {}),
    }


def budget_options(plan: RepositoryPlan) -> dict[str, str]:
    """Return the plan's decisions for GPU engines, as options of the config's form."""
    if not plan.config.engine.traits.upstream_engines:
        return {}
    return {f"kv tokens {role}": str(budget.tokens) for role, budget in plan.budgets.items()}


def _driving_options(config: RunConfig) -> dict[str, str]:
    serving = config.serving
    return {
        "instances": str(serving.instances),
        "spawn_processes": str(serving.spawn_processes),
        "repository_path": str(serving.repository_path),
        "library": library_digest(),
    }


def write_repository(plan: RepositoryPlan, out: Path) -> None:
    """Write the models into the empty folder `out`.

    Engine files are hard-linked where the file system allows it, else copied. Raises Unsupported if
    Triton cannot configure the run's method.
    """
    if plan.config.serving.front in FRONTS:
        _write_front(plan, out)
        return
    if plan.config.engine.traits.whole_repository:
        _write_whole(plan, out)
        return
    models = entries(plan)
    for entry in models:
        _write_model(entry, plan, out)
    if plan.tokenizer is not None:
        _link(plan.tokenizer, out / plan.endpoint.tokenizer)
    if plan.drives_engines:
        write_library(out / LIBRARY)
    if plan.release:
        write_placement(plan.placement, out)


def _write_front(plan: RepositoryPlan, out: Path) -> None:
    """Write what another front than Triton reads, and how it is called."""
    _copy_files(plan, out)
    text = dump_endpoint(plan.endpoint) + "\n"
    (out / DESCRIPTION).write_text(text, encoding="utf-8")
    if plan.tokenizer is not None:
        _link(plan.tokenizer, out / plan.endpoint.tokenizer)


def _write_whole(plan: RepositoryPlan, out: Path) -> None:
    """Write a repository that the backend built, and its description into its model's config."""
    _copy_files(plan, out)
    endpoint = plan.endpoint
    file = out / endpoint.text.name / "config.pbtxt"
    config = parse(file.read_text(encoding="utf-8"))
    config.parameters[PARAMETER].string_value = dump_endpoint(endpoint)
    config.parameters[KEY_PARAMETER].string_value = plan.key
    file.write_text(to_text(config), encoding="utf-8")
    if plan.tokenizer is not None:
        _link(plan.tokenizer, out / endpoint.tokenizer)


def _copy_files(plan: RepositoryPlan, out: Path) -> None:
    """Copy what the backend built, without the manifest."""
    engine, request = plan.engines["target"], plan.requests["target"]
    for name in load_backend(plan.config.engine.backend).files(request):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(engine / name, out / name)


def _write_model(entry: ModelEntry, plan: RepositoryPlan, out: Path) -> None:
    name = entry.model.name
    version = out / name / "1"
    version.mkdir(parents=True)
    (out / name / "config.pbtxt").write_text(render(entry.model), encoding="utf-8")
    if entry.module == "llm_api":
        (version / "model.py").write_text(LLM_API, encoding="utf-8")
        _link(plan.engines["target"], version)
        return
    if entry.module is not None:
        own = plan.drives_engines and entry.module not in ("engine", "emulator")
        (version / "model.py").write_text(_shim(name, entry.module, own), encoding="utf-8")
    if entry.role is not None:
        _link(plan.engines[entry.role], version / entry.role)
        if entry.model.parameters.get(INFO_PATH) and plan.tokenizer is not None:
            (version / INFO).write_text(tokenizer_info(plan.tokenizer), encoding="utf-8")
    elif entry.module == "engine":
        for role, engine in plan.engines.items():
            _link(engine, version / "engines" / role)


LLM_API = '''"""Triton's entry to upstream's LLM API model, which the container brings."""

import importlib.util
import os
import sys
from pathlib import Path

FOLDER = Path(os.environ.get("LLMAPI_MODEL_DIR", "/app/all_models/llmapi/tensorrt_llm/1"))
if not (FOLDER / "model.py").exists():
    raise FileNotFoundError(
        f"{FOLDER} has no model.py: serve this repository in a Triton container with TensorRT-LLM, "
        "or set LLMAPI_MODEL_DIR"
    )
sys.path.insert(0, str(FOLDER))  # model.py imports its neighbour helpers.py
spec = importlib.util.spec_from_file_location("upstream_llmapi_model", FOLDER / "model.py")
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
TritonPythonModel = module.TritonPythonModel
'''


def _shim(model: str, name: str, own_library: bool) -> str:
    """Return a model.py; with `own_library` it imports the library in the repository."""
    module = f"specpipe.runtime.triton.{name}"
    path = (
        "import sys\nfrom pathlib import Path\n\n"
        f'sys.path.insert(0, str(Path(__file__).parents[2] / "{LIBRARY}"))\n\n'
        if own_library
        else ""
    )
    return (
        f'"""Triton\'s entry to `{model}`; the code is in {module}."""\n\n'
        f"{path}from {module} import TritonPythonModel as TritonPythonModel\n"
    )


def _link(source: Path, target: Path) -> None:
    """Copy a folder by hard links; copy the files where the file system has no hard links."""
    for file in sorted(f for f in source.rglob("*") if f.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, place)
        except OSError:
            shutil.copyfile(file, place)
