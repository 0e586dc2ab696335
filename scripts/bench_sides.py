"""The sides of scripts/bench-batching: engines and servers that answer the same prompts."""

import json
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from bench_prompts import decode, encode

from specpipe.bench.throughput import Span, while_busy
from specpipe.config.run_config import RunConfig
from specpipe.core.artifacts import Workspace
from specpipe.core.contracts import Sampling
from specpipe.run.run import Run
from specpipe.run.stages import build
from specpipe.runtime.assembly import Runtime, open_runtime
from specpipe.runtime.batcher import Batcher
from specpipe.runtime.budget import Budget
from specpipe.runtime.stream import Stream
from specpipe.serve.address import free_address
from specpipe.serve.client import Client, Generation, Options
from specpipe.serve.tritonserver import start_server
from specpipe.speculate.decode import Limits, Step

WORKER = Path(__file__).with_name("bench-batching-genai")
SERVER = ", server"  # in the name of a side that is called over gRPC
NO_END = -1  # a token that no model emits


@dataclass
class Answer:
    """One answer, and the seconds from its request to its first and its last token."""

    tokens: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    text: str = ""


@dataclass(frozen=True)
class Timing:
    """All answers of one measurement in the order of their requests, `streams` at a time."""

    streams: int
    answers: Sequence[Answer]

    @property
    def tokens_per_s(self) -> float:
        """Return tokens/s while all streams have something to do, prefill included."""
        spans = [Span(answer.tokens, answer.first_s, answer.last_s) for answer in self.answers]
        tokens, seconds = while_busy(spans, self.streams)
        return tokens / seconds


class Side(Protocol):
    """An engine or a server; greedy, and without end tokens."""

    name: str
    baseline: str  # the name of the same side without speculation; empty: none
    peer: str  # name and version of another project's engine; empty: this project's

    def answer(self, prompts: Sequence[str], tokens: Sequence[int], streams: int) -> Timing:
        """Answer each prompt in its number of tokens, `streams` at a time."""
        ...


@dataclass
class _Run:
    """A request that a batcher decodes."""

    began: float
    ids: list[int] = field(default_factory=list)
    answer: Answer = field(default_factory=Answer)

    def take(self, step: Step) -> None:
        """Add the tokens of a step."""
        self.ids += step.tokens
        self.answer.tokens = len(self.ids)
        self.answer.last_s = time.perf_counter() - self.began
        self.answer.first_s = self.answer.first_s or self.answer.last_s


@dataclass
class InProcess:
    """The CPU engine and the batcher in this process."""

    name: str
    baseline: str
    deployment: Runtime
    budget: Budget
    tokenizer: Any
    num_draft_tokens: int | None
    peer: str = ""

    def answer(self, prompts: Sequence[str], tokens: Sequence[int], streams: int) -> Timing:
        """See `Side`."""
        ids = [encode(self.tokenizer, prompt) for prompt in prompts]
        batcher, limits = self.deployment.batcher(self.budget), [Limits(n) for n in tokens]
        runs = run_ours(self.deployment, batcher, ids, limits, self.num_draft_tokens, streams)
        for run in runs:
            run.answer.text = decode(self.tokenizer, run.ids)
        return Timing(streams, [run.answer for run in runs])


def run_ours(
    deployment: Runtime,
    batcher: Batcher,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[Limits],
    num_draft_tokens: int | None,
    streams: int,
) -> list[_Run]:
    """Decode all prompts, `streams` at a time; the next one joins when one has ended."""
    waiting, runs = deque(zip(prompts, limits, strict=True)), list[_Run]()
    running: dict[Stream, _Run] = {}
    while waiting or running:
        while waiting and len(running) < streams:
            run = _Run(time.perf_counter())
            prompt, limit = waiting.popleft()
            decoding = deployment.decoding(prompt, Sampling(), limit, num_draft_tokens)
            running[deployment.add(batcher, decoding)] = run
            runs.append(run)
        for stream, event in batcher.round():
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Step):
                running[stream].take(event)
                if event.finish is not None:
                    del running[stream]
    return runs


@dataclass
class Server:
    """A Triton server, called over gRPC by one thread a stream."""

    name: str
    baseline: str
    client: Client
    num_draft_tokens: int | None
    peer: str = ""

    def answer(self, prompts: Sequence[str], tokens: Sequence[int], streams: int) -> Timing:
        """See `Side`."""
        options = Options(end_id=NO_END, num_draft_tokens=self.num_draft_tokens)

        def ask(prompt: str, most: int) -> Generation:
            limited = replace(options, max_tokens=most)
            return self.client.collect(self.client.stream(prompt, limited))

        with ThreadPoolExecutor(streams) as pool:
            found = list(pool.map(ask, prompts, tokens))
        answers = [Answer(g.output_tokens or 0, g.first_s, g.total_s, g.text) for g in found]
        return Timing(streams, answers)


@dataclass
class GenAi:
    """OpenVINO GenAI's continuous batching, in a process of its own."""

    name: str
    baseline: str
    process: "subprocess.Popen[str]"
    tokenizer: Any
    peer: str

    def answer(self, prompts: Sequence[str], tokens: Sequence[int], streams: int) -> Timing:
        """See `Side`."""
        ids = [encode(self.tokenizer, prompt) for prompt in prompts]
        job = {"prompts": ids, "tokens": [*tokens], "streams": streams}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        found = read_line(self.process)
        each = zip(found["outputs"], found["first_s"], found["last_s"], strict=True)
        answers = [
            Answer(len(o), first, last, decode(self.tokenizer, o)) for o, first, last in each
        ]
        return Timing(streams, answers)


def read_line(process: "subprocess.Popen[str]") -> Any:
    """Return the next line of a worker; exits if the worker has ended."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{WORKER.name} ended with exit code {process.wait()}")
    return json.loads(line)


def open_in_process(
    stack: ExitStack, config: RunConfig, tokenizer: Any, label: str = ""
) -> list[Side]:
    """Build and load a run; return it with speculation, if it has any, and without."""
    workspace = _build(stack, config)
    engines = {role: workspace.engine(role) for role in config.models()}
    deployment = open_runtime(config, engines)
    budget = deployment.warm_up()
    return [
        InProcess(name, baseline, deployment, budget, tokenizer, number)
        for name, baseline, number in _variants(config, label)
    ]


def open_server(stack: ExitStack, config: RunConfig, label: str = "") -> list[Side]:
    """Build and serve a run; return it with speculation, if it has any, and without."""
    workspace = _build(stack, config)
    log = workspace.root / "server.log"
    served = stack.enter_context(start_server(workspace.repository, free_address(), log))
    client = stack.enter_context(Client(served.address.grpc))
    return [
        Server(name, baseline, client, number)
        for name, baseline, number in _variants(config, label + SERVER)
    ]


def open_genai(
    stack: ExitStack, name: str, command: Sequence[str], tokenizer: Any, baseline: str = ""
) -> GenAi:
    """Start a worker; `command` is Python, the folder of the model, and the worker's options."""
    python, *rest = command
    pipe = subprocess.PIPE
    process = subprocess.Popen([python, str(WORKER), *rest], stdin=pipe, stdout=pipe, text=True)
    stack.enter_context(process)  # leaving closes stdin, which ends the worker
    peer = f"openvino-genai {read_line(process)['version']}"
    return GenAi(name, baseline, process, tokenizer, peer)


def _build(stack: ExitStack, config: RunConfig) -> Workspace:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    workspace = Workspace(Path(folder), config.name)
    build(Run(config, workspace))
    return workspace


def _variants(config: RunConfig, label: str) -> Iterator[tuple[str, str, int | None]]:
    """Yield names, names of the baselines and draft tokens: with speculation and without."""
    name = config.name + label
    if config.speculation.num_draft_tokens == 0:
        yield name, "", None
        return
    plain = f"{name}, plain"
    yield name, plain, None
    yield plain, "", 0
