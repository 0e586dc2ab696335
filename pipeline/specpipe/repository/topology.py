"""Choose the models of a repository: for the CPU engine, for TensorRT-LLM's, or for llmapi.

The first two have upstream's five model names, so one client works with both.
"""

import json
from dataclasses import asdict, dataclass

from specpipe.config.run_config import RunConfig
from specpipe.core.contracts import Role
from specpipe.core.endpoint import dump_endpoint
from specpipe.engine.upstream_models import TOKENIZER
from specpipe.repository.description import FRONTS, KEY_PARAMETER, PARAMETER
from specpipe.repository.engine_parameters import EnginePlan, engine_parameters
from specpipe.repository.inputs import RepositoryPlan
from specpipe.repository.placement import ENGINE_MODELS
from specpipe.repository.render import ServedModel
from specpipe.repository.signature import (
    LLMAPI,
    cpu_engine_signature,
    served_signature,
)
from specpipe.repository.tokenizer_info import INFO

_TOKENIZER = f"../../{TOKENIZER}"  # seen from a model's version folder
MOST_INSTANCES = 16  # processes of a text model, unless serving.instances is set
SPARE_REQUESTS = 16  # requests whose tokens are complete and whose text is still being sent


@dataclass(frozen=True)
class ModelEntry:
    """A model, the module that runs it (None: Triton's C++ backend), and its engine."""

    model: ServedModel
    module: str | None
    role: Role | None = None


def entries(plan: RepositoryPlan) -> list[ModelEntry]:
    """Return the models of a repository; raises Unsupported if a method cannot be configured."""
    if plan.serves_sources:
        return [_llm_api(plan)]
    if not plan.drives_engines:
        return [*_text_models(plan), _cpu_engine(plan), *_helpers(plan)]
    return [*_text_models(plan), *_engine_models(plan), *_helpers(plan)]


def _lengths(plan: RepositoryPlan) -> dict[str, str]:
    engine = plan.config.engine
    return {"max_input_len": str(engine.max_input_len), "max_seq_len": str(engine.max_seq_len)}


def _helpers(plan: RepositoryPlan) -> list[ModelEntry]:
    folders = {"preprocessing": "tokenizer", "postprocessing": _TOKENIZER}
    return [
        ModelEntry(
            ServedModel(
                name=name,
                signature=served_signature(name, plan.table),
                parameters={**_lengths(plan), "tokenizer_dir": folder, **_vocabulary(plan)},
            ),
            name,
        )
        for name, folder in folders.items()
    ]


def _text_models(plan: RepositoryPlan) -> list[ModelEntry]:
    return [
        ModelEntry(
            ServedModel(
                name=name,
                signature=served_signature(name, plan.table),
                parameters={
                    **_lengths(plan),
                    "tokenizer_dir": _TOKENIZER,
                    **_loop(plan),
                    **(_description(plan) if name in FRONTS else {}),
                    **_most_requests(plan),
                },
                decoupled=plan.config.serving.decoupled,
                instances=_instances(plan),
                max_queue_size=plan.config.serving.max_queue_size if plan.drives_engines else None,
            ),
            "text",
        )
        for name in ("ensemble", "tensorrt_llm_bls")
    ]


def _description(plan: RepositoryPlan) -> dict[str, str]:
    """Return the description of the endpoint that clients request from the server."""
    own = {KEY_PARAMETER: plan.key} if plan.key else {}
    return {PARAMETER: dump_endpoint(plan.endpoint), **own}


def _most_requests(plan: RepositoryPlan) -> dict[str, str]:
    """Return the number of requests that a text model has in flight; other models have one."""
    if plan.drives_engines:
        return {}
    config = plan.config
    room = config.engine.max_batch_size + config.serving.max_queue_size
    return {"max_requests": str(room + SPARE_REQUESTS)}


def _loop(plan: RepositoryPlan) -> dict[str, str]:
    """Return the parameters with which text models drive engines; empty if they do not."""
    if not plan.drives_engines:
        return {}
    options = plan.config.speculation
    return {
        "loop": "draft_target" if plan.drafts else "engine",
        "method": options.method,
        "num_draft_tokens": str(options.num_draft_tokens),
        "tensorrt_llm_model_name": ENGINE_MODELS["target"],
        "tensorrt_llm_draft_model_name": ENGINE_MODELS["draft"] if plan.drafts else "",
        "accumulate_tokens": "false",
        "multimodal_encoders_name": "",
        "draft_limit": _engine_limit(plan),
        "engine_decoupled": json.dumps(_engines_stream(plan)),
        "table": plan.table,
        "guides": ("xgrammar" if plan.release else "engine") if plan.guides else "",
        **_vocabulary(plan),
    }


def _vocabulary(plan: RepositoryPlan) -> dict[str, str]:
    """Return how long an embedding bias is: the rows of the target's output layer, padded."""
    request = plan.requests.get("target")
    if request is None or not plan.drives_engines:
        return {}
    tp = request.engine.parallel.tp_size
    return {"padded_vocab_size": str(-(-request.model.vocab_size // tp) * tp)}


def _engines_stream(plan: RepositoryPlan) -> bool:
    """Whether the engines' models send several responses to a request.

    In the loop over draft and target every call is short. Triton allows any number of concurrent
    calls to a model that sends one response per request.
    """
    return not plan.drafts and (plan.config.serving.decoupled or not plan.drives_engines)


def _engine_limit(plan: RepositoryPlan) -> str:
    """Return how a request to the engines' model limits its draft tokens; empty if none can."""
    tokens = plan.endpoint.tokens
    limit = tokens.draft_limit if tokens else None
    return limit.carrier if limit else ""


def _instances(plan: RepositoryPlan) -> int:
    """Count the processes of a text model; each drives one request at a time, as in upstream."""
    if not plan.drives_engines:
        return 1
    config = plan.config
    return config.serving.instances or min(config.engine.max_batch_size, MOST_INSTANCES)


def _cpu_engine(plan: RepositoryPlan, path: str = "engines/") -> ModelEntry:
    """Return the model that holds the engines of the CPU backend and runs the speculation."""
    config = plan.config
    roles = {role: f"{path}{role}" for role in plan.engines}
    parameters = {
        **_lengths(plan),
        **engine_options(config),
        "engines": json.dumps(roles, sort_keys=True),
        "draft_limit": _engine_limit(plan),
        "tokenizer_dir": _TOKENIZER,  # for the grammars of structured output
    }
    signature = cpu_engine_signature()
    model = ServedModel("tensorrt_llm", signature, parameters, decoupled=_engines_stream(plan))
    return ModelEntry(model, "engine")


def engine_options(config: RunConfig) -> dict[str, str]:
    """Return the parameters of the CPU engine's model."""
    return {
        "backend": config.engine.backend,
        "speculation": json.dumps(asdict(config.speculation), sort_keys=True),
        "max_batch_size": str(config.engine.max_batch_size),
        "max_num_tokens": str(config.max_num_tokens),
        "max_queue_size": str(config.serving.max_queue_size),
    }


def _engine_models(plan: RepositoryPlan) -> list[ModelEntry]:
    if plan.release:
        return [_cpp_engine(plan, role) for role in plan.engines]
    if plan.drafts:
        return [_emulator(plan, role) for role in plan.engines]
    return [_cpu_engine(plan)]


def _llm_api(plan: RepositoryPlan) -> ModelEntry:
    """Return the model around `model.yaml`; the container has its code, which is upstream's."""
    signature = served_signature(LLMAPI, plan.table)
    decoupled = plan.config.serving.decoupled
    model = ServedModel(
        "tensorrt_llm", signature, _description(plan), decoupled=decoupled, max_batch_size=0
    )
    return ModelEntry(model, "llm_api", "target")


def _cpp_engine(plan: RepositoryPlan, role: Role) -> ModelEntry:
    name, config = ENGINE_MODELS[role], plan.config
    engine = EnginePlan(
        request=plan.requests[role],
        ranks=plan.ranks,
        placement=plan.placement,
        speculation=config.speculation,
        engine_dir=plan.home / name / "1" / role,
        table=plan.table,
        budget=plan.budgets.get(role),
        tokenizer_info=plan.home / name / "1" / INFO if plan.guides else None,
    )
    model = ServedModel(
        name=name,
        signature=served_signature("tensorrt_llm", plan.table),
        parameters=engine_parameters(engine),
        backend="tensorrtllm",
        decoupled=_engines_stream(plan),
        max_batch_size=config.engine.max_batch_size,
        max_queue_size=config.serving.max_queue_size,
    )
    return ModelEntry(model, None, role)


def _emulator(plan: RepositoryPlan, role: Role) -> ModelEntry:
    """Return a CPU engine with the tensors of `tensorrt_llm` that verifies drafts as it does."""
    config = plan.config
    parameters = {
        **_lengths(plan),
        "backend": config.engine.backend,
        "max_batch_size": str(config.engine.max_batch_size),
        "num_draft_tokens": str(config.speculation.num_draft_tokens if role == "target" else 0),
        "engine": role,
    }
    signature = served_signature("tensorrt_llm")
    model = ServedModel(ENGINE_MODELS[role], signature, parameters)
    return ModelEntry(model, "emulator", role)
