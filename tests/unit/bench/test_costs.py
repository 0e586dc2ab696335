"""The cost model of a server is found from requests with known numbers of rows."""

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from specpipe.bench.costs import Sizes, bench_costs
from specpipe.core.endpoint import Endpoint, Serving
from specpipe.core.errors import Unsupported
from specpipe.engine.openvino.endpoint import describe
from specpipe.serve.client import Acceptance, Generation, Options, Piece, collect
from specpipe.tune.cost import Costs, read_costs

OVERHEAD_S, DRAFTS, DRAFT_MS = 0.03, 3, 2.0
SIZES = Sizes((1, 2, 4), rows=(4, 32), max_tokens=20, rounds=2)


def step_ms(rows: int) -> float:
    """Return the true time of a step."""
    return 10.0 + rows


@dataclass
class TimedClient:
    """A client of a server with known step times, which accepts every second draft token of three.

    `loads` is the number of streams that run at the time of each request.
    """

    endpoint: Endpoint = field(default_factory=lambda: describe(Serving("draft_model", DRAFTS)))
    url: str = "there:1"
    ends_after: int = 1000
    loads: Iterator[int] = field(
        default_factory=lambda: iter([1, *([1] * 2), *([2] * 4), *([4] * 8), 1, 1])
    )
    lock: threading.Lock = field(default_factory=threading.Lock)

    def stream(self, prompt: str, options: Options, *, model: str) -> Iterator[Piece]:
        with self.lock:
            streams = next(self.loads)
        drafts = DRAFTS if options.num_draft_tokens is None else options.num_draft_tokens
        ms = step_ms(streams * (1 + drafts)) + drafts * DRAFT_MS
        emitted, count = 2 if drafts else 1, min(options.max_tokens, self.ends_after)
        steps = 1 + (count - 1) // emitted
        for step in range(steps):
            found = Acceptance(drafts * step, step * (emitted - 1))
            tokens = 1 + step * emitted
            yield Piece("x", (), step == steps - 1, found, tokens, OVERHEAD_S + step * ms / 1000)

    def stream_tokens(self, prompt: Sequence[int], options: Options) -> Iterator[Piece]:
        yield Piece("", (5,), True, Acceptance(), 1, OVERHEAD_S + step_ms(len(prompt) - 1) / 1000)

    def collect(self, pieces: Iterator[Piece]) -> Generation:
        return collect(pieces)


def test_the_cost_model_of_a_server_has_its_step_times(tmp_path: Path) -> None:
    """Of two ways to measure the same number of rows, streams are taken."""
    client = TimedClient()
    found = bench_costs(client, SIZES, draft_model=True)  # type: ignore[arg-type]
    file = tmp_path / "costs.json"
    file.write_text(json.dumps(found.as_file({"server": client.url})))
    costs = read_costs(file)
    assert isinstance(costs, Costs) and not costs.estimated
    assert costs.step.rows == (1, 2, 4, 32)
    assert costs.step.ms[:3] == pytest.approx([step_ms(n) for n in (1, 2, 4)])
    assert costs.step(32) == pytest.approx(step_ms(1) + 30)  # rows of a prompt beyond two tokens
    assert costs.draft_ms == pytest.approx(DRAFT_MS, rel=0.01) and costs.heads_ms == 0
    heads = bench_costs(TimedClient(), SIZES)  # type: ignore[arg-type]
    assert heads.heads_ms == pytest.approx(DRAFTS * DRAFT_MS, rel=0.01) and heads.draft_ms == 0


def test_a_server_whose_steps_have_unknown_rows_is_refused() -> None:
    client = TimedClient()
    text = replace(client.endpoint.text, draft_limit=None)
    client.endpoint = replace(client.endpoint, texts=(text,))
    with pytest.raises(Unsupported, match="no request can turn the speculation of there:1 off"):
        bench_costs(client, SIZES)  # type: ignore[arg-type]
    client.endpoint = replace(client.endpoint, texts=(replace(text, decoupled=False),))
    with pytest.raises(Unsupported, match="there:1 does not stream"):
        bench_costs(client, SIZES)  # type: ignore[arg-type]


def test_an_answer_that_ends_too_early_is_refused() -> None:
    with pytest.raises(Unsupported, match="ended after 5 tokens, which is too early to time it"):
        bench_costs(TimedClient(ends_after=5), SIZES)  # type: ignore[arg-type]
