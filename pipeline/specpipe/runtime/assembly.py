"""Turns names into engines and proposers; the only module that imports both.

To add a speculation method, write its module and add one line to the table; backends have theirs in
`config/backends.py`.
"""

import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from specpipe.config.backends import BACKENDS
from specpipe.config.run_config import LEAST_ROWS, RunConfig
from specpipe.config.speculation import AnyLength, Medusa, NoSpeculation, Speculation, WithLength
from specpipe.core.contracts import Proposer, Role, Sampling
from specpipe.core.endpoint import Endpoint, Serving
from specpipe.core.engines import EngineFacts, LoadedEngine
from specpipe.core.errors import Unsupported
from specpipe.engine.backend import Backend
from specpipe.runtime.batcher import Batcher, alone
from specpipe.runtime.bounds import draft_tokens
from specpipe.runtime.budget import Budget
from specpipe.runtime.cost import measure_steps
from specpipe.runtime.stream import Stream
from specpipe.speculate import accept
from specpipe.speculate.constrained import Constraint
from specpipe.speculate.decode import Decoding, Limits, Step, decode
from specpipe.speculate.vocabulary import in_vocabulary

SLOW_MS = 100.0  # a step of one row of a large model takes longer

_IMPLEMENTATIONS = {name: traits.implementation for name, traits in BACKENDS.items()}

PROPOSERS: dict[str, str] = {  # method -> build(options, engines) -> Proposer
    "none": "specpipe.speculate.none:build",
    "prompt_lookup": "specpipe.speculate.prompt_lookup:build",
    "draft_model": "specpipe.speculate.draft_model:build",
    "lookahead": "specpipe.speculate.lookahead:build",
    "medusa": "specpipe.speculate.medusa:build",
    "redrafter": "specpipe.speculate.redrafter:build",
    "eagle3": "specpipe.speculate.eagle3:build",
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
    backend: Backend = _find(_IMPLEMENTATIONS, name, "backend")()
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
        front=config.serving.front,
        model=config.target.model,
    )
    return load_backend(config.engine.backend).endpoint(serving)


def make_proposer(options: Speculation, engines: Mapping[Role, EngineFacts]) -> Proposer:
    """Return a proposer for one sequence; `engines` are those of the deployment."""
    proposer: Proposer = _find(PROPOSERS, options.method, "method")(options, engines)
    return proposer


def acceptance_rule(options: Speculation) -> accept.Rule | None:
    """Return the acceptance rule for sampled tokens; None: the lossless default of `decode`."""
    if isinstance(options, Medusa) and options.acceptance == "typical":
        return partial(accept.typical, epsilon=options.typical_epsilon, delta=options.typical_delta)
    return None


def limit_draft(options: Speculation, num_draft_tokens: int | None) -> Speculation:
    """Return `options` for a request with at most `num_draft_tokens` draft tokens.

    Raises ConfigError for a number below 0 or above what the engine was built for, and Unsupported
    for any but these two if the method's drafts have one shape only.
    """
    most, who = options.num_draft_tokens, f"method {options.method}"
    limit = draft_tokens(num_draft_tokens, most, any_number=isinstance(options, AnyLength), who=who)
    if limit == most:
        return options
    if limit == 0 or not isinstance(options, AnyLength):  # the latter drafts `most` or none
        return NoSpeculation()
    return replace(options, num_draft_tokens=limit)


@dataclass(frozen=True)
class Runtime:
    """The loaded engines of one run and what its requests are decoded with."""

    engines: Mapping[Role, LoadedEngine]
    speculation: Speculation
    max_num_tokens: int = LEAST_ROWS

    @property
    def facts(self) -> Mapping[Role, EngineFacts]:
        """The sizes of every engine."""
        return {role: engine.facts for role, engine in self.engines.items()}

    def decoding(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        limits: Limits,
        num_draft_tokens: int | None = None,
        *,
        log_probs: bool = False,
        tops: int = 0,
        constraint: Constraint | None = None,
    ) -> Decoding:
        """Return the algorithm for one request, for a batcher.

        `num_draft_tokens` may lower the configured number; 0 turns speculation off. Raises
        ConfigError for a number that is not possible.
        """
        options = limit_draft(self.speculation, num_draft_tokens)
        proposer, rule = make_proposer(options, self.facts), acceptance_rule(options)
        return decode(
            proposer,
            prompt,
            sampling,
            limits,
            rule,
            log_probs=log_probs,
            tops=tops,
            constraint=constraint,
        )

    def batcher(self, budget: Budget | None = None) -> Batcher:
        """Return a batcher over the engines; only one may be in use."""
        return Batcher(self.engines, self.max_num_tokens, budget or Budget())

    def add(
        self, batcher: Batcher, decoding: Decoding, *, counted: bool = True, salt: str = ""
    ) -> Stream:
        """Let a batcher decode one more sequence, with the limits of the run's speculation.

        `counted` and `salt`: see `Batcher.add`.
        """
        options = self.speculation
        adaptive = isinstance(options, WithLength) and options.draft_length != "fixed"
        most = options.max_concurrency
        return batcher.add(
            decoding, adaptive=adaptive, max_concurrency=most, counted=counted, salt=salt
        )

    def decode(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        limits: Limits,
        num_draft_tokens: int | None = None,
    ) -> Iterator[Step]:
        """Decode one request on its own."""
        events = alone(self.batcher(), self.decoding(prompt, sampling, limits, num_draft_tokens))
        return (event for event in events if isinstance(event, Step))

    def warm_up(self, clock: Callable[[], int] = time.perf_counter_ns) -> Budget:
        """Run short requests and measure the engine's steps; return the budget for serving.

        The first request makes the engine lay out its weights. If the model is large, it is the
        only one, since every step of a large model would delay the start of the server. `clock`
        counts nanoseconds.
        """
        if self._last_step_ms(clock) < SLOW_MS:
            repetitive = [1] * 70
            for _ in self.decode(repetitive, Sampling(), Limits(max_tokens=12)):
                pass
        budget = Budget()
        if self.speculation.num_draft_tokens > 0:
            budget.cost = measure_steps(self.engines["target"], self.max_num_tokens)
        for engine in self.engines.values():
            engine.trim()
        return budget

    def _last_step_ms(self, clock: Callable[[], int]) -> float:
        """Decode three tokens, one a step; return the milliseconds of the last step."""
        ends = [clock() for _ in self.decode([1], Sampling(), Limits(max_tokens=3), 0)]
        return (ends[-1] - ends[-2]) / 1e6 if len(ends) > 1 else 0.0


def load_runtime(
    engines: Mapping[Role, Path],
    backend: str,
    speculation: Speculation,
    max_num_tokens: int = LEAST_ROWS,
) -> Runtime:
    """Load the engines of a run; raises ConfigError if one of them is damaged."""
    driver = load_backend(backend)
    loaded = {role: driver.load(path) for role, path in engines.items()}
    size = loaded["target"].facts.vocab_size
    known = {role: in_vocabulary(engine, size) for role, engine in loaded.items()}
    return Runtime(known, speculation, max_num_tokens)


def open_runtime(config: RunConfig, engines: Mapping[Role, Path]) -> Runtime:
    """Load the engines of a config for use in this process."""
    return load_runtime(engines, config.engine.backend, config.speculation, config.max_num_tokens)
