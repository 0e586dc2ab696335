"""`specpipe tune` and `recommend` for a run: answers are recorded here, steps priced anywhere.

The accepted tokens depend only on the models, so a run that is meant for a GPU is tuned
with the CPU engine and the GPU's step times: estimated (`plan/roofline.py`), or those of a file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from specpipe.config.run_config import EngineOptions, RunConfig
from specpipe.config.speculation import NoSpeculation, Speculation
from specpipe.config.upstream_methods import UPSTREAM_ONLY
from specpipe.core.errors import ConfigError, Rejection, Unsupported
from specpipe.engine.gpus import find_gpu, unknown_gpu
from specpipe.engine.upstream_models import TOKENIZER
from specpipe.plan.outlook import outlook
from specpipe.plan.roofline import Estimate
from specpipe.run.run import Run
from specpipe.run.stages import build
from specpipe.runtime.assembly import open_runtime
from specpipe.tune.candidates import possible_methods
from specpipe.tune.cost import CostCurve, Costs, read_costs
from specpipe.tune.machine_load import watch

if TYPE_CHECKING:
    from specpipe.tune.result import Recommendation, Tuning
    from specpipe.tune.tune import Observed

Notify = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prices:
    """The source of the step times, and the load; without a source, this machine is measured."""

    file: Path | None = None  # see `tune.cost.read_costs`
    gpu: str | None = None  # estimated
    streams: int = 1  # that are decoded at a time


def tune_run(
    run: Run,
    prices: Prices,
    *,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> "Tuning":
    """Choose the settings of the run's method for its prompts.

    Builds what is not up to date first. Raises what `build` raises, and Unsupported if the GPU is
    not known.
    """
    from specpipe.tune.tune import tune

    return tune(_observe(run, prices, notify, progress))


def recommend_run(
    run: Run,
    prices: Prices,
    *,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> "Recommendation":
    """Compare the methods that the run's models and its GPU, if any, support.

    Reports why every other method is left out. Raises what `tune_run` raises.
    """
    from specpipe.tune.tune import recommend

    seen = _observe(run, prices, notify, progress)
    gpu = prices.gpu or run.config.engine.gpu
    methods = possible_methods(run.config.speculation)
    return recommend(seen, _allowed(run, gpu, methods, notify) if gpu else methods)


def _observe(run: Run, prices: Prices, notify: Notify, progress: Progress) -> "Observed":
    """Build a run for this machine if need be, load its engines and record its answers."""
    from specpipe.tune.tune import observe
    from specpipe.validate.questions import load_prompts

    _require_replay(run.config.speculation)
    _require_streams(run.config, prices.streams)
    watching = watch()
    costs = _costs(run, prices)
    if costs and costs.estimated:
        notify("step times: an estimate from data sheets, not measured")
    here = _build_here(run, notify, progress)
    plan, place = here.plan, here.workspace
    prompts, end_ids = load_prompts(here.config, place.repository / TOKENIZER)
    engines = {role: place.engine(role) for role in plan.requests}
    deployment = open_runtime(plan.config, engines)
    return observe(
        plan.config, deployment, prompts, end_ids,
        costs=costs, watching=watching, streams=prices.streams, progress=progress,
    )  # fmt: skip


def _build_here(run: Run, notify: Notify, progress: Progress) -> Run:
    """Build and return the run for this machine; a refusal states that the CPU engine is meant."""
    config = on_this_machine(run.config)
    here = run if config is run.config else run.variant(config)
    try:
        build(here, notify=notify, progress=progress)
    except Unsupported as error:
        if here is run:
            raise
        raise Unsupported(
            f"answers are recorded with the CPU engine, which cannot be used here: {error.message}",
            hint=error.hint,
        ) from error
    return here


def _require_replay(options: Speculation) -> None:
    if options.method in UPSTREAM_ONLY:
        raise Unsupported(
            f"method {options.method} runs only in TensorRT-LLM, but settings are tried with the "
            "CPU engine",
            hint="measure it with `specpipe validate` on a GPU machine",
        )


def _require_streams(config: RunConfig, streams: int) -> None:
    if streams > config.engine.max_batch_size:
        raise ConfigError(
            f"--streams is {streams}: engine.max_batch_size of {config.path} is "
            f"{config.engine.max_batch_size}",
            hint="give fewer streams, or raise engine.max_batch_size",
        )


def on_this_machine(config: RunConfig) -> RunConfig:
    """Return the run with the CPU engine, under a name of its own if it had another one."""
    engine = config.engine
    if engine.traits.own_engine:
        return config
    cpu = EngineOptions("openvino", None, "float32", "none", tp_size=1).sized_like(engine)
    return replace(config, name=f"{config.name}.cpu", engine=cpu)


def on_gpu(config: RunConfig, gpu: str) -> RunConfig:
    """Return the run with an engine for `gpu`."""
    engine = config.engine
    if not engine.traits.own_engine:
        return replace(config, engine=replace(engine, gpu=gpu))
    return replace(config, engine=EngineOptions("tensorrt", gpu, "bfloat16").sized_like(engine))


def _costs(run: Run, prices: Prices) -> Costs | None:
    read = read_costs(prices.file) if prices.file else None
    if isinstance(read, Costs):
        return read
    gpu = prices.gpu or run.config.engine.gpu
    if gpu is None:
        if read is None:
            return None
        raise ConfigError(
            f"{prices.file} has figures of several GPUs, and the run names none",
            hint="choose one with --gpu NAME",
        )
    if find_gpu(gpu) is None:
        unknown = unknown_gpu(gpu, "--gpu" if prices.gpu else "engine.gpu")
        raise Unsupported(unknown.reason, hint=unknown.hint)
    plan = run.variant(on_gpu(run.config, gpu)).plan
    estimate = plan.estimate
    if estimate is None or plan.memory is None:
        raise Unsupported(
            f"{run.config.target.model} has an architecture that specpipe does not know, so its "
            f"step times on {gpu} cannot be estimated",
            hint="tune a run whose models are of the families in docs/families.md",
        )
    if read is not None:
        estimate = outlook(
            plan.config, plan.requests, plan.memory.footprints, read.gpu(gpu), None, read.reached
        )
    return estimated_costs(estimate)


def estimated_costs(estimate: Estimate) -> Costs:
    """Return the step times of a plan's estimate as prices."""
    rows = sorted(estimate.costs)
    curve = CostCurve(tuple(rows), tuple(estimate.costs[n] for n in rows))
    return Costs(
        curve, estimate.heads_ms, estimate.draft_ms,
        handover_ms=estimate.handover_ms, estimated=True,
    )  # fmt: skip


def _allowed(
    run: Run, gpu: str, methods: Sequence[Speculation], notify: Notify
) -> list[Speculation]:
    """Return the methods that a GPU supports, apart from refusals of plain decoding."""

    def rejections(method: Speculation) -> tuple[Rejection, ...]:
        other = on_gpu(replace(run.config, speculation=method), gpu)
        return run.variant(other).plan.rejections

    allowed, anyway = [], rejections(NoSpeculation())
    for method in methods:
        reason = next((reason for reason in rejections(method) if reason not in anyway), None)
        if reason is None:
            allowed.append(method)
        else:
            notify(f"left out: {method.method}: {reason}")
    return allowed
