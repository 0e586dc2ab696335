"""The cost model of a running server, measured by requests with known numbers of rows.

- n streams that decode plainly at the same time give the time of a step over n rows.
- A prompt of n tokens that no request has sent before gives the time of n rows of one sequence, as
  the difference of its time to the first token and that of a prompt of two tokens.
- Requests with speculation give the time of a step's drafts: what a step takes beyond its rows.

The times are those of a client, so they include the server's own work for every step. The rows of n
streams read n KV caches; rows of one sequence read one, so they cost less where texts are long.
"""

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from specpipe.bench.served import Notify, endless
from specpipe.core.endpoint import Model
from specpipe.core.errors import Unsupported
from specpipe.serve.client import Client, Generation, Options, unshared
from specpipe.tune.cost import CostCurve, rising
from specpipe.validate.load import ClosedLoop, run_load
from specpipe.validate.metrics import Figure, figure

PROMPT = "Count from one to one thousand:"
FIRST_IDS, LAST_IDS = 20, 200  # tokens of prompts: every vocabulary has them, and none ends a text
LEAST_TOKENS = 8  # of an answer whose time per token counts


@dataclass(frozen=True)
class Sizes:
    """How much is measured; one stream always is."""

    streams: tuple[int, ...] = (1, 2, 4, 8)
    rows: tuple[int, ...] = (8, 16, 32, 64)  # of prompts, beyond the most streams
    max_tokens: int = 48
    rounds: int = 3


@dataclass(frozen=True)
class MeasuredCosts:
    """The cost model of a server."""

    step: CostCurve
    streams_ms: dict[int, Figure]  # of a step by the number of streams
    rows_ms: dict[int, Figure]  # of a step by the rows of one sequence
    heads_ms: float = 0.0  # of the drafts of one step
    draft_ms: float = 0.0  # of one token of a draft model

    def as_file(self, conditions: dict[str, str]) -> dict[str, object]:
        """Return the values of a file for `--cost-model`."""
        return {
            "step_ms": {
                str(n): round(ms, 4) for n, ms in zip(self.step.rows, self.step.ms, strict=True)
            },
            "heads_ms": round(self.heads_ms, 4),
            "draft_ms": round(self.draft_ms, 4),
            "estimated": False,
            "source": "specpipe bench costs",
            "conditions": conditions,
        }


def bench_costs(
    client: Client,
    sizes: Sizes,
    *,
    model: str | None = None,
    draft_model: bool = False,
    notify: Notify = lambda text: None,
) -> MeasuredCosts:
    """Measure a running server that does nothing else.

    `model` is one of `endpoint.texts`. `draft_model`: its drafts are those of a draft model, one
    call a token. Raises Unsupported if no request can turn its speculation off, or if its answers
    end too early to be timed.
    """
    asked = Asked(client, client.endpoint.text if model is None else client.endpoint.named(model))
    plain = _plain(asked, sizes)
    notify(f"decoding plainly in {', '.join(map(str, sizes.streams))} streams")
    _decode(asked, plain, 1)  # the first request of a server is slower
    streams = {n: _streams_ms(asked, plain, n, sizes.rounds) for n in sorted({1, *sizes.streams})}
    wide = [n for n in sizes.rows if n > max(streams)]
    tokens = client.endpoint.tokens
    rows: dict[int, Figure] = {}
    if tokens is not None and wide:
        notify(f"reading prompts of {', '.join(map(str, wide))} tokens")
        rows = _rows_ms(client, tokens, wide, streams[1].median, sizes.rounds)
    known = {n: found.median for n, found in {**streams, **rows}.items()}
    curve = CostCurve(tuple(known), rising(list(known.values())))
    if not asked.model.speculates:
        return MeasuredCosts(curve, streams, rows)
    notify("decoding with speculation")
    drafting_ms, drafted = _drafting_ms(asked, replace(plain, num_draft_tokens=None), curve, sizes)
    if draft_model:
        return MeasuredCosts(curve, streams, rows, draft_ms=drafting_ms / max(1.0, drafted))
    return MeasuredCosts(curve, streams, rows, heads_ms=drafting_ms)


@dataclass(frozen=True)
class Asked:
    """The model that requests are sent to."""

    client: Client
    model: Model


def _plain(asked: Asked, sizes: Sizes) -> Options:
    model, client = asked.model, asked.client
    if not model.decoupled:
        raise Unsupported(
            f"{client.url} does not stream, so the time of a step cannot be measured",
            hint="set serving.decoupled: true, and package the run again",
        )
    if model.speculates and not model.can_decode_plainly:
        raise Unsupported(
            f"no request can turn the speculation of {client.url} off, so rows cannot be counted",
            hint="serve the run with method: none, and measure that server",
        )
    options = replace(endless(client, sizes.max_tokens), num_draft_tokens=0)
    return options if model.speculates else replace(options, num_draft_tokens=None)


def _decode(asked: Asked, options: Options, streams: int) -> list[Generation]:
    """Return the answers of streams that run at the same time."""
    client, fresh = asked.client, unshared(options, asked.model)

    def one() -> Generation:
        return client.collect(client.stream(PROMPT, fresh, model=asked.model.name))

    found, _ = run_load(ClosedLoop(streams), [one] * streams)
    return [sent.result for sent in found]


def _streams_ms(asked: Asked, options: Options, streams: int, rounds: int) -> Figure:
    """Return the milliseconds between two tokens of streams that decode together."""
    times = []
    for _ in range(rounds):
        times += [_ms_a_step(answer) for answer in _decode(asked, options, streams)]
    return figure(times)


def _ms_a_step(answer: Generation) -> float:
    """Return the milliseconds of a step after the first token."""
    steps = (answer.output_tokens or 0) - answer.acceptance.accepted_draft_tokens
    if (answer.output_tokens or 0) < LEAST_TOKENS or steps < 2:
        raise Unsupported(
            f"an answer ended after {answer.output_tokens} tokens, which is too early to time it",
            hint="raise --max-tokens, or serve a model that writes longer texts",
        )
    return (answer.total_s - answer.first_s) * 1000 / (steps - 1)


def _rows_ms(
    client: Client, model: Model, wide: Sequence[int], one_ms: float, rounds: int
) -> dict[int, Figure]:
    """Return the milliseconds of a step over n rows of one sequence."""
    draw = random.Random(0)
    fewest = 2
    times: dict[int, list[float]] = {n: [] for n in (fewest, *wide)}
    for turn in range(rounds + 1):  # the first turn of every length is not counted
        for n, found in times.items():
            prompt = [draw.randrange(FIRST_IDS, LAST_IDS) for _ in range(n)]
            first_ms = _first_ms(client, model, prompt)
            if turn:
                found.append(first_ms)
    base = statistics.median(times.pop(fewest))
    return {n: figure([one_ms + max(0.0, ms - base) for ms in ms_of]) for n, ms_of in times.items()}


def _first_ms(client: Client, model: Model, prompt: Sequence[int]) -> float:
    options = unshared(Options(max_tokens=1), model)
    return max(piece.at_s for piece in client.stream_tokens(prompt, options)) * 1000


def _drafting_ms(
    asked: Asked, options: Options, curve: Callable[[float], float], sizes: Sizes
) -> tuple[float, float]:
    """Return the milliseconds of a step beyond those of its rows, and its draft tokens."""
    beyond, drafted = [], []
    for _ in range(sizes.rounds):
        (answer,) = _decode(asked, options, 1)
        found = answer.acceptance
        steps = (answer.output_tokens or 0) - found.accepted_draft_tokens
        drafted.append(found.draft_tokens / max(1, steps - 1))  # the first step has no draft
        beyond.append(_ms_a_step(answer) - curve(1 + drafted[-1]))
    return max(0.0, statistics.median(beyond)), statistics.median(drafted)
