"""`specpipe tune` and `recommend` for a run: answers are recorded here, steps priced anywhere.

Which guesses are right follows from the models alone, so a run that is meant for a GPU is tuned
with the CPU engine and the GPU's step times: estimated (`plan/roofline.py`), or those of a file.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from specpipe.artifacts import Workspace
from specpipe.assembly import open_deployment
from specpipe.config import EngineOptions, RunConfig
from specpipe.contracts import Rejection
from specpipe.errors import Unsupported
from specpipe.methods import NoSpeculation, Speculation
from specpipe.plan.gpus import find_gpu, unknown_gpu
from specpipe.plan.roofline import Estimate
from specpipe.planning import make_plan
from specpipe.run import build
from specpipe.tune.candidates import possible_methods
from specpipe.tune.cost import CostCurve, Costs, read_costs

if TYPE_CHECKING:
    from specpipe.tune.tune import Observed, Prediction, Tuning

Notify = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prices:
    """For which machine steps are priced; neither: for this one, by timing it."""

    file: Path | None = None  # see `tune.cost.read_costs`
    gpu: str | None = None  # estimated


def tune_run(
    config: RunConfig,
    workspace: Workspace,
    prices: Prices,
    *,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> "Tuning":
    """Choose the settings of the run's method for its prompts.

    Builds what is not fresh first. Raises what `build` raises, and Unsupported if the GPU is not
    known.
    """
    from specpipe.tune.tune import tune

    return tune(_observe(config, workspace, prices, notify, progress))


def recommend_run(
    config: RunConfig,
    workspace: Workspace,
    prices: Prices,
    *,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> "list[Prediction]":
    """Compare the methods that the run's models allow and its GPU, if any, can do.

    Says of every other method why not. Raises what `tune_run` raises.
    """
    from specpipe.tune.tune import recommend

    seen = _observe(config, workspace, prices, notify, progress)
    allowed = []
    for method in possible_methods(config.speculation):
        reasons = _refusals(config, workspace, prices, method)
        if reasons:
            notify(f"left out: {method.method}: {reasons[0]}")
        else:
            allowed.append(method)
    return recommend(seen, allowed)


def _observe(
    config: RunConfig, workspace: Workspace, prices: Prices, notify: Notify, progress: Progress
) -> "Observed":
    """Build a run for this machine if need be, load its engines and record its answers."""
    from specpipe.tune.tune import observe
    from specpipe.validate.validate import load_prompts

    costs = _costs(config, workspace, prices)
    if costs and not prices.file:
        notify("steps are priced by an estimate for the GPU, not by measurements")
    here = on_this_machine(config)
    place = Workspace(workspace.root, here.name)
    build(here, place, notify=notify, progress=progress)
    plan = make_plan(here, place)
    prompts, end_id = load_prompts(here, place.repository / "preprocessing/1/tokenizer")
    engines = {role: place.engine(role) for role in plan.requests}
    deployment = open_deployment(plan.config, engines)
    return observe(plan.config, deployment, prompts, end_id, costs=costs, progress=progress)


def on_this_machine(config: RunConfig) -> RunConfig:
    """Return the run with the CPU engine, under a name of its own if it had another one."""
    engine = config.engine
    if engine.backend == "openvino":
        return config
    lengths = engine.max_batch_size, engine.max_input_len, engine.max_seq_len
    cpu = EngineOptions("openvino", None, "float32", "none", tp_size=1).sized(*lengths)
    return replace(config, name=f"{config.name}.cpu", engine=cpu)


def on_gpu(config: RunConfig, gpu: str) -> RunConfig:
    """Return the run as it would be planned for `gpu`."""
    engine = config.engine
    if engine.backend != "openvino":
        return replace(config, engine=replace(engine, gpu=gpu))
    lengths = engine.max_batch_size, engine.max_input_len, engine.max_seq_len
    return replace(config, engine=EngineOptions("tensorrt", gpu, "bfloat16").sized(*lengths))


def _costs(config: RunConfig, workspace: Workspace, prices: Prices) -> Costs | None:
    if prices.file:
        return read_costs(prices.file)
    gpu = prices.gpu or config.engine.gpu
    if gpu is None:
        return None
    if find_gpu(gpu) is None:
        raise Unsupported(str(unknown_gpu(gpu)))
    estimate = make_plan(on_gpu(config, gpu), workspace).estimate
    assert estimate is not None  # a known GPU always has one
    return estimated_costs(estimate)


def estimated_costs(estimate: Estimate) -> Costs:
    """Return the step times of a plan's estimate as prices."""
    rows = sorted(estimate.costs)
    curve = CostCurve(tuple(rows), tuple(estimate.costs[n] for n in rows))
    return Costs(curve, estimate.heads_ms, estimate.draft_ms, handover_ms=estimate.handover_ms)


def _refusals(
    config: RunConfig, workspace: Workspace, prices: Prices, method: Speculation
) -> list[Rejection]:
    """Return what a GPU has against a method, beside what it has against plain decoding."""
    gpu = prices.gpu or config.engine.gpu
    if gpu is None:
        return []
    found = [
        make_plan(on_gpu(replace(config, speculation=s), gpu), workspace).rejections
        for s in (method, NoSpeculation())
    ]
    return [reason for reason in found[0] if reason not in found[1]]
