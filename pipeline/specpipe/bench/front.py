"""The end-to-end cost of the OpenAI front: the same requests over HTTP and over gRPC, in turn."""

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from specpipe.bench.front_process import FrontProcess, started_front
from specpipe.bench.precision import precision_of
from specpipe.bench.prompts import PromptSet
from specpipe.bench.served import Notify, Progress, endless, send, served
from specpipe.core.errors import Unsupported
from specpipe.core.statistics import bootstrap
from specpipe.repository.description import token_counter
from specpipe.run.run import Run
from specpipe.runtime.assembly import describe_endpoint
from specpipe.serve.client import Client, Generation, Options
from specpipe.validate.load import ClosedLoop, run_load
from specpipe.validate.metrics import Figure, figure

WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class FrontRow:
    """One run at one number of streams; every figure is over the rounds."""

    run: str
    precision: str
    streams: int
    grpc_tokens_per_s: Figure  # of all streams together, prefill included
    front_tokens_per_s: Figure
    ratio: Figure  # front by gRPC, round by round
    front_cpu_us: float  # of the front's process, per output token
    client_cpu_us: float  # how much more of the client's CPU a token over HTTP takes than over gRPC
    equal_answers: int
    answers: int


@dataclass(frozen=True)
class Side:
    """What one transport did in one round."""

    answers: tuple[Generation, ...]
    seconds: float
    client_cpu_s: float  # of this process
    front_cpu_s: float  # of the front's process

    @property
    def tokens(self) -> int:
        """The output tokens of all answers."""
        return max(1, sum(answer.output_tokens or 0 for answer in self.answers))

    @property
    def tokens_per_s(self) -> float:
        """The output tokens by the seconds until the last answer has ended."""
        return self.tokens / self.seconds


Round = tuple[Side, Side]  # over gRPC, through the front


def bench_front(
    run: Run,
    prompts: PromptSet,
    streams: Sequence[int],
    *,
    rounds: int,
    max_tokens: int,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> list[FrontRow]:
    """Serve a run with a front before it, and send both the same requests; a row per load.

    In a round every stream has one greedy answer of `max_tokens` tokens from each side; the sides
    take turns in being the first. A run with fewer slots than streams is measured with more. Raises
    what `require_triton_run`, `served` and the client raise.
    """
    require_triton_run(run)
    run = with_slots(run, max(streams))
    with ExitStack() as stack:
        running = stack.enter_context(served(run, notify))
        packaged, place = running.client.endpoint, run.workspace.repository
        log = run.workspace.reports / "front-bench.log"
        front = stack.enter_context(started_front(running.server.url, log))
        count = token_counter(place, packaged)
        http = stack.enter_context(Client(front.url, packaged, count=count))
        sides = (running.client, http)
        found: dict[int, list[Round]] = {number: [] for number in streams}
        for number in streams:
            for client in sides:
                ask_all(client, front, prompts.prompts, number, WARM_UP_TOKENS)
        for done in range(rounds):
            for number in streams:
                chosen = turned(prompts.prompts, done * number)
                found[number].append(ask_in_turn(sides, front, chosen, number, max_tokens, done))
            progress(done + 1, rounds)
    return [summarise(run, number, measured) for number, measured in found.items()]


def require_triton_run(run: Run) -> None:
    """Raise Unsupported if the run's own server already speaks OpenAI's API instead of gRPC."""
    if describe_endpoint(run.config).api != "triton":
        raise Unsupported(
            f"{run.config.path}: serving.front is {run.config.serving.front}: this run's server "
            "answers over HTTP itself, so there is no front to measure",
            hint="measure it with `specpipe bench serving`",
        )


def with_slots(run: Run, streams: int) -> Run:
    """Return the run with a slot for every stream; one that has them is returned unchanged."""
    config = run.config
    if config.engine.max_batch_size >= streams:
        return run
    engine = replace(config.engine, max_batch_size=streams)
    name = f"{config.name[:80]}.{streams}-slots"
    return run.variant(replace(config, engine=engine, name=name))


def turned(prompts: Sequence[str], start: int) -> Sequence[str]:
    """Return the prompts from another one on, so that every round has others."""
    start %= len(prompts)
    return [*prompts[start:], *prompts[:start]]


def ask_in_turn(
    sides: tuple[Client, Client],
    front: FrontProcess,
    prompts: Sequence[str],
    streams: int,
    max_tokens: int,
    number: int,
) -> Round:
    """Return one round; the front is the first in every other one."""
    ask = partial(ask_all, front=front, prompts=prompts, streams=streams, max_tokens=max_tokens)
    grpc, http = sides
    if number % 2:
        through = ask(http)
        return ask(grpc), through
    return ask(grpc), ask(http)


def ask_all(
    client: Client, front: FrontProcess, prompts: Sequence[str], streams: int, max_tokens: int
) -> Side:
    """Send a prompt from every stream at the same time, and wait for all answers."""
    options: Options = endless(client, max_tokens)
    jobs = [
        partial(send, client, prompts[number % len(prompts)], options) for number in range(streams)
    ]
    own, theirs = time.process_time(), front.cpu_s()
    sent, seconds = run_load(ClosedLoop(streams), jobs)
    spent = time.process_time() - own
    return Side(tuple(one.result for one in sent), seconds, spent, front.cpu_s() - theirs)


def summarise(run: Run, streams: int, rounds: Sequence[Round]) -> FrontRow:
    """Turn the rounds of one load into figures."""
    ratios = [front.tokens_per_s / grpc.tokens_per_s for grpc, front in rounds]
    pairs = [
        pair for grpc, front in rounds for pair in zip(grpc.answers, front.answers, strict=True)
    ]
    grpc, front = zip(*rounds, strict=True)
    client_us = [statistics.mean(_client_us(side) for side in sides) for sides in (grpc, front)]
    return FrontRow(
        run=run.config.name,
        precision=precision_of(run.config.engine),
        streams=streams,
        grpc_tokens_per_s=figure([side.tokens_per_s for side in grpc]),
        front_tokens_per_s=figure([side.tokens_per_s for side in front]),
        ratio=replace(figure(ratios), interval=bootstrap(ratios)),
        front_cpu_us=sum(s.front_cpu_s for s in front) / sum(s.tokens for s in front) * 1e6,
        client_cpu_us=client_us[1] - client_us[0],
        equal_answers=sum(ours.text == theirs.text for ours, theirs in pairs),
        answers=len(pairs),
    )


def _client_us(side: Side) -> float:
    return side.client_cpu_s / side.tokens * 1e6
