"""Names into objects: the only module that knows both engines and proposers.

To add a backend or a speculation method, write its module and add one line to a table.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from specpipe.building import Backend
from specpipe.config import RunConfig
from specpipe.contracts import LoadedEngine, Proposer, Role, Runner, Sampling
from specpipe.endpoint import Endpoint, Serving
from specpipe.errors import ConfigError, Unsupported
from specpipe.methods import AnyLength, Medusa, NoSpeculation, Speculation
from specpipe.speculate import accept
from specpipe.speculate.context import read_context
from specpipe.speculate.decode import Limits, Prefilled, Step, decode_events, only_steps
from specpipe.speculate.draft_length import QuietWhenBusy
from specpipe.speculate.vocabulary import in_vocabulary

BACKENDS: dict[str, str] = {
    "openvino": "specpipe.engine.openvino.backend:OpenVinoBackend",
    "tensorrt": "specpipe.engine.tensorrt.backend:TensorRtBackend",
    "llmapi": "specpipe.engine.llmapi.backend:LlmApiBackend",
}

PROPOSERS: dict[str, str] = {  # method -> build(options, runners) -> Proposer
    "none": "specpipe.speculate.none:build",
    "prompt_lookup": "specpipe.speculate.prompt_lookup:build",
    "draft_model": "specpipe.speculate.draft_model:build",
    "lookahead": "specpipe.speculate.lookahead:build",
    "medusa": "specpipe.speculate.medusa:build",
    "redrafter": "specpipe.speculate.redrafter:build",
    "hybrid": "specpipe.speculate.hybrid:build",
}


def _find(table: Mapping[str, str], name: str, what: str) -> Any:
    if name not in table:
        raise Unsupported(f"{what} {name!r} is not there yet", hint=f"known: {', '.join(table)}")
    module, attribute = table[name].split(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise Unsupported(
            f"{what} {name!r} needs the package {error.name}",
            hint="for openvino, in a clone of specpipe: pip install -e '.[cpu]'",
        ) from error


def load_backend(name: str) -> Backend:
    """Return the backend of that name.

    Raises Unsupported if there is none, or if a package that it needs is not installed.
    """
    backend: Backend = _find(BACKENDS, name, "backend")()
    return backend


def describe_endpoint(config: RunConfig) -> Endpoint:
    """Return how a run is served and called; the chat template is not known here.

    Raises what `load_backend` raises.
    """
    options = config.speculation
    serving = Serving(
        method=options.method,
        num_draft_tokens=options.num_draft_tokens,
        any_number=isinstance(options, AnyLength),
        streams=config.serving.decoupled,
        loop=config.serving.loop,
        release=config.engine.tensorrt_llm,
    )
    return load_backend(config.engine.backend).endpoint(serving)


def make_proposer(options: Speculation, runners: Mapping[Role, Runner]) -> Proposer:
    """Return a proposer for one sequence at a time."""
    proposer: Proposer = _find(PROPOSERS, options.method, "method")(options, runners)
    return proposer


@dataclass(frozen=True)
class Slot:
    """Room for one sequence: a runner, and so a KV cache, in every engine of the deployment."""

    runners: Mapping[Role, Runner]
    speculation: Speculation

    def decode(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        limits: Limits,
        num_draft_tokens: int | None = None,
    ) -> Iterator[Step]:
        """Decode one request on its own; see `events`."""
        return only_steps(self.events(prompt, sampling, limits, num_draft_tokens))

    def events(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        limits: Limits,
        num_draft_tokens: int | None = None,
        *,
        log_probs: bool = False,
        running: Callable[[], int] = lambda: 1,
    ) -> Iterator[Step | Prefilled]:
        """Decode one request; `num_draft_tokens` may lower the configured number, 0 turns it off.

        Yields between any two calls of an engine's that read the prompt, and after every step.

        `running()` is asked before every step how many sequences there are, this one included, for
        `max_concurrency`. Raises ConfigError if `num_draft_tokens` cannot be had.
        """
        options = limit_draft(self.speculation, num_draft_tokens)
        proposer = make_proposer(options, self.runners)
        if options.max_concurrency is not None:
            proposer = QuietWhenBusy(proposer, options.max_concurrency, running)
        target, rule = self.runners["target"], acceptance_rule(options)
        drafts = options.num_draft_tokens > 0
        return decode_events(
            target,
            proposer,
            prompt,
            sampling,
            limits,
            rule,
            log_probs=log_probs,
            readers=[self.runners["draft"]] if drafts and "draft" in self.runners else [],
        )

    def context(self, prompt: Sequence[int]) -> Iterator[Prefilled]:
        """Run the target over `prompt`; every event has the logits after some of its tokens."""
        return (Prefilled(rows) for rows in read_context(self.runners["target"], prompt))


def acceptance_rule(options: Speculation) -> accept.Rule:
    """Return the acceptance rule for sampled tokens."""
    if isinstance(options, Medusa) and options.acceptance == "typical":
        return partial(accept.typical, epsilon=options.typical_epsilon, delta=options.typical_delta)
    return accept.sample


def limit_draft(options: Speculation, num_draft_tokens: int | None) -> Speculation:
    """Return `options` for a request with at most `num_draft_tokens` draft tokens.

    Raises ConfigError for a number below 0 or above what the engine was built for, and for any but
    these two if the method's drafts have one shape only.
    """
    if num_draft_tokens is None:
        return options
    most = options.num_draft_tokens
    if not 0 <= num_draft_tokens <= most:
        raise ConfigError(
            f"num_draft_tokens is {num_draft_tokens}: must be from 0 to {most}, "
            "the number that the server was configured with"
        )
    if num_draft_tokens == most:
        return options
    if num_draft_tokens == 0:
        return NoSpeculation()
    if not isinstance(options, AnyLength):
        raise ConfigError(
            f"num_draft_tokens is {num_draft_tokens}: method {options.method} drafts {most} tokens "
            "a step, or none with 0"
        )
    return replace(options, num_draft_tokens=num_draft_tokens)


@dataclass(frozen=True)
class Deployment:
    """The loaded engines of one run; its slots share the weights and one thread."""

    engines: Mapping[Role, LoadedEngine]
    speculation: Speculation

    def slot(self) -> Slot:
        """Return room for one more sequence."""
        rows = {"target": 1 + self.speculation.num_draft_tokens}
        size = self.engines["target"].vocab_size
        runners = {
            role: in_vocabulary(engine.runner(rows.get(role, 0)), size)
            for role, engine in self.engines.items()
        }
        return Slot(runners, self.speculation)

    def warm_up(self) -> None:
        """Run one short request, so that the first real one is not slower than the rest."""
        repetitive = [1] * 70
        for _ in self.slot().decode(repetitive, Sampling(), Limits(max_tokens=12)):
            pass
        for engine in self.engines.values():
            engine.trim()


def load_deployment(
    engines: Mapping[Role, Path], backend: str, speculation: Speculation
) -> Deployment:
    """Load the engines of a run; raises ConfigError if one of them is damaged."""
    driver = load_backend(backend)
    return Deployment({role: driver.load(path) for role, path in engines.items()}, speculation)


def open_deployment(config: RunConfig, engines: Mapping[Role, Path]) -> Deployment:
    """Load the engines of a config for use in this process."""
    return load_deployment(engines, config.engine.backend, config.speculation)
