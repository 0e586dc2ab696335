"""Many streams in one batch: every answer is that of its request alone, on any schedule."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from specpipe.config.method_parts import DraftOptions, Eagle3Draft, Eagle3Options, ReDrafterOptions
from specpipe.config.speculation import (
    DraftModel,
    Eagle3,
    Hybrid,
    Lookahead,
    Medusa,
    NoSpeculation,
    PromptLookup,
    ReDrafter,
    Speculation,
)
from specpipe.core.contracts import Role, Sampling, Scores
from specpipe.core.engines import Item
from specpipe.runtime.assembly import make_proposer
from specpipe.runtime.batcher import Batcher, alone
from specpipe.runtime.budget import Budget
from specpipe.runtime.cost import StepCost
from specpipe.runtime.stream import Stream
from specpipe.speculate.decode import ContextLogits, Decoding, Limits, Step, decode, read_context
from tests.helpers.languages import TEXTS, Language
from tests.helpers.toy_engine import ToyEngine

DRAFT = DraftOptions("unused")
METHODS: list[Speculation] = [
    NoSpeculation(),
    PromptLookup("prompt_lookup", 4, 1, 3),
    PromptLookup("prompt_lookup", 6, 1, 3, "dynamic"),
    Lookahead("lookahead", 3, 3, 3),
    Medusa("medusa", "unused", 6, "dynamic"),
    ReDrafter("redrafter", "unused", 2, 3),
    Eagle3("eagle3", Eagle3Draft("unused"), 3),
    Eagle3("eagle3", Eagle3Draft("unused"), 6, "dynamic", 2, 3),
    Hybrid("hybrid", None, 6, 1, 3, eagle3=Eagle3Options("unused", 2, 3)),
    Hybrid("hybrid", None, 6, 1, 3, redrafter=ReDrafterOptions("unused", 2, 3)),
    Hybrid("hybrid", DRAFT, 4, 2, 3),
    DraftModel("draft_model", DRAFT, 4),
]
DRAWS = (DraftModel, Hybrid)  # drafts may be drawn, so sampled answers depend on their length
COST = StepCost(np.array([1.0, 2, 8, 64]), np.array([10.0, 11, 14, 50]), change_ms=6.0)


def engines(blocks: int = 64, **changes: int) -> dict[Role, ToyEngine]:
    return {"target": ToyEngine(blocks=blocks, **changes), "draft": ToyEngine(blocks=300, seed=2)}


def batcher(made: dict[Role, ToyEngine], rows: int = 64, **changes: object) -> Batcher:
    return Batcher(made, rows, Budget(replace(COST)), **changes)  # type: ignore[arg-type]


@dataclass
class Task:
    """A request and what came of it."""

    prompt: list[int]
    method: Speculation
    sampling: Sampling
    limits: Limits
    stream: Stream | None = None
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    cancelled: bool = False
    language: Language | None = None

    def decoding(self) -> Decoding:
        facts = {role: engine.facts for role, engine in engines().items()}
        constraint = self.language.constraint(self.sampling.end_ids) if self.language else None
        proposer = make_proposer(self.method, facts)
        return decode(proposer, self.prompt, self.sampling, self.limits, constraint=constraint)

    def expected(self) -> list[int]:
        """Return the answer of plain decoding of this request alone."""
        plain = replace(self, method=NoSpeculation())
        steps = alone(batcher(engines(blocks=300)), plain.decoding())
        return [token for step in steps if isinstance(step, Step) for token in step.tokens]


def task(method: Speculation, seed: int = 0, prompt: int = 20, tokens: int = 24) -> Task:
    rng = np.random.default_rng(seed)
    greedy = isinstance(method, DRAWS) or rng.random() < 0.5
    sampling = Sampling() if greedy else Sampling(top_k=0, seed=seed)
    ids = rng.integers(0, 7, prompt).tolist()
    return Task(ids, method, replace(sampling, end_ids=(6,), min_tokens=8), Limits(tokens))


def run(made: Batcher, tasks: list[Task], rounds: int = 2000) -> None:
    """Let all tasks decode together until every stream has ended."""
    for given in tasks:
        given.stream = made.add(given.decoding())
    for _ in range(rounds):
        if not made.streams:
            return
        collect(tasks, made.round())
    raise AssertionError("some streams never ended")


def collect(tasks: list[Task], events: list[tuple[Stream, object]]) -> None:
    for stream, event in events:
        (owner,) = (given for given in tasks if given.stream is stream)
        assert isinstance(event, Step), event
        owner.tokens += event.tokens
        owner.finish = event.finish


def test_streams_with_and_without_a_grammar_share_a_batch() -> None:
    grammars = (None, Language("(ab|ba?c|cc?a)*", TEXTS), Language("c(a|bc){2,9}", TEXTS))
    tasks = [task(method, seed) for seed, method in enumerate(METHODS)]
    for at, given in enumerate(tasks):
        given.language = grammars[at % 3]
    run(batcher(engines()), tasks)
    for given in tasks:
        assert given.tokens == given.expected()
    assert {given.finish for given in tasks} >= {"grammar", "end_id"}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.method)
def test_streams_of_one_method_answer_as_each_alone(method: Speculation) -> None:
    tasks = [task(method, seed) for seed in range(6)]
    run(batcher(engines()), tasks)
    for given in tasks:
        assert given.tokens == given.expected()


def test_the_first_token_does_not_wait_until_a_draft_model_has_read_the_prompt() -> None:
    made = engines()
    many = batcher(made, rows=8)
    given = task(DraftModel("draft_model", DRAFT, 4), prompt=40)
    given.stream = many.add(given.decoding(), adaptive=False)
    while not given.tokens:
        assert made["draft"].steps == []
        collect([given], many.round())
    while many.streams:
        collect([given], many.round())
    assert made["draft"].steps and given.tokens == given.expected()


def test_the_prompt_that_a_draft_model_reads_is_charged_to_trials() -> None:
    many = batcher(engines(), rows=64)
    given = task(DraftModel("draft_model", DRAFT, 4), prompt=40)
    given.stream = many.add(given.decoding(), adaptive=False)
    while many.streams:
        collect([given], many.round())
    assert many.budget.trials_ms < 0


def test_the_price_of_drafts_is_learned_in_the_round_in_which_the_draft_model_reads() -> None:
    """Short answers have hardly another round with drafts."""
    noted = list[tuple[str, int]]()

    class Noting(Budget):
        def note_drafting(self, depth: int, calls: int, ms: float) -> None:
            noted.append(("drafting", calls if depth else 0))

        def note_reading(self, ms: float) -> None:
            noted.append(("reading", 1))

        def note_round(self, tokens: int, ms: float) -> None:
            noted.append(("round", tokens))

    many = Batcher(engines(), 64, Noting())
    given = task(DraftModel("draft_model", DRAFT, 4), prompt=40)
    given.stream = many.add(given.decoding(), adaptive=False)
    while many.streams and len(noted) < 4:
        many.round()
    assert noted[:3] == [("reading", 1), ("drafting", 3), ("drafting", 4)]
    assert noted[3][0] == "round"


def test_streams_of_all_methods_share_their_steps() -> None:
    made = engines()
    tasks = [task(method, seed) for seed, method in enumerate(METHODS)]
    run(batcher(made, rows=128), tasks)
    for given in tasks:
        assert given.tokens == given.expected(), given.method
    assert len(made["target"].steps) < sum(len(given.tokens) for given in tasks) / 3


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.method)
def test_the_drafts_of_a_stream_are_those_that_it_has_alone(method: Speculation) -> None:
    """Wrong drafts would not change an answer; they would only be accepted less often."""

    def steps_of(tasks: list[Task]) -> list[list[tuple[int, int]]]:
        made = batcher(engines(blocks=200), rows=512)
        for given in tasks:
            given.stream = made.add(given.decoding(), adaptive=False)
        found: list[list[tuple[int, int]]] = [[] for _ in tasks]
        while made.streams:
            for stream, step in made.round():
                (place,) = (n for n, given in enumerate(tasks) if given.stream is stream)
                assert isinstance(step, Step)
                found[place].append((step.drafted, step.accepted))
        return found

    together = steps_of([task(method, seed) for seed in range(5)])
    assert together == [steps_of([task(method, seed)])[0] for seed in range(5)]
    assert method.method == "none" or sum(accepted for s in together for _, accepted in s) > 0


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.method)
def test_an_engine_that_must_not_see_branches_gets_chains(method: Speculation) -> None:
    class Chains(ToyEngine):
        def step(self, items: Sequence[Item]) -> list[Scores]:
            assert all(item.parents is None for item in items)
            return super().step(items)

    made = engines()
    made["target"] = Chains()
    made["target"].facts = replace(made["target"].facts, chains_only=True)
    tasks = [task(method, seed) for seed in range(4)]
    run(batcher(made), tasks)
    assert all(given.tokens == given.expected() for given in tasks)


def test_no_step_is_longer_than_allowed() -> None:
    made = engines(blocks=200)
    tasks = [task(METHODS[seed % len(METHODS)], seed, prompt=150) for seed in range(12)]
    run(batcher(made, rows=64), tasks)
    assert max(made["target"].steps) <= 64
    assert all(given.tokens == given.expected() for given in tasks)


def padded_steps(made: dict[Role, ToyEngine], tasks: list[Task]) -> list[int]:
    """Answer alone after a step of seven rows; return the rows of the next steps."""
    shared = batcher(made)
    for given in tasks:
        given.stream = shared.add(given.decoding())
    collect(tasks, shared.round())  # the prompt
    made["target"].steps.clear()
    shared.budget.cost = StepCost(np.array([1.0, 8]), np.array([10.0, 11]), 6.0, last_rows=7)
    collect(tasks, shared.round())
    while shared.streams:
        collect(tasks, shared.round())
    assert all(given.tokens == given.expected() for given in tasks)
    return made["target"].steps


def test_a_narrow_step_is_padded_where_a_change_of_width_costs_more() -> None:
    assert padded_steps(engines(), [task(NoSpeculation(), 3, tokens=12)])[0] == 7


def test_a_step_is_not_padded_beyond_the_end_of_the_sequence_or_the_pool() -> None:
    for changes in ({"max_seq_len": 32}, {"blocks": 1}):
        steps = padded_steps(engines(**changes), [task(NoSpeculation(), 3, prompt=28, tokens=4)])
        assert set(steps) == {1}


def test_a_chain_stays_a_chain_when_it_is_padded() -> None:
    made = engines()
    made["target"].facts = replace(made["target"].facts, chains_only=True)
    assert set(padded_steps(made, [task(NoSpeculation(), 3, tokens=12)])) == {1}


def test_running_streams_emit_in_every_round_while_long_prompts_arrive() -> None:
    made = batcher(engines(blocks=400), rows=64)
    running = [task(METHODS[n], n, tokens=60) for n in range(4)]
    for given in running:
        given.sampling = replace(given.sampling, end_ids=())
        given.stream = made.add(given.decoding())
    while not all(given.tokens for given in running):
        collect(running, made.round())
    arriving = [task(NoSpeculation(), seed, prompt=600, tokens=2) for seed in range(3)]
    for given in arriving:
        given.stream = made.add(given.decoding())
    for _ in range(10):
        events = made.round()
        assert {id(s) for s, _ in events} >= {id(given.stream) for given in running}
        collect(running + arriving, events)


def test_a_full_pool_preempts_the_youngest_and_fails_nobody() -> None:
    made = batcher(engines(blocks=6))
    tasks = [task(METHODS[n], n, prompt=40, tokens=50) for n in range(5)]
    run(made, tasks)
    assert made.counts.preemptions > 0
    for given in tasks:
        assert given.tokens == given.expected(), given.method


def test_a_stream_that_breaks_ends_alone() -> None:
    def broken() -> Decoding:
        yield from read_context([1, 2, 3])
        raise RuntimeError("broken")

    made = batcher(engines())
    good = task(METHODS[1], 1)
    good.stream = made.add(good.decoding())
    bad = made.add(broken())
    outcomes: list[object] = []
    while made.streams:
        for stream, event in made.round():
            if stream is bad:
                outcomes.append(event)
            else:
                collect([good], [(stream, event)])
    assert isinstance(outcomes[0], ContextLogits) and str(outcomes[1]) == "broken"
    assert good.tokens == good.expected()


def test_the_logits_of_a_prompt_come_in_order() -> None:
    made = engines()
    prompt = np.random.default_rng(3).integers(0, 7, 150).tolist()
    events = alone(batcher(made), read_context(prompt))
    rows = [event.logits for event in events if isinstance(event, ContextLogits)]
    want = [made["target"].distribution(prompt[: n + 1], 1) for n in range(len(prompt))]
    np.testing.assert_allclose(np.exp(np.concatenate(rows)), np.array(want), rtol=1e-5)


def test_a_known_prefix_is_not_read_again() -> None:
    made = engines()
    shared = batcher(made)
    first = task(NoSpeculation(), 5, prompt=200, tokens=4)
    run(shared, [first])
    rows = sum(made["target"].steps)
    again = task(NoSpeculation(), 5, prompt=200, tokens=4)
    run(shared, [again])
    assert again.tokens == first.tokens
    assert sum(made["target"].steps) - rows < 40


def test_more_streams_than_max_concurrency_draft_nothing() -> None:
    made = engines()
    crowd = batcher(made)
    tasks = [task(PromptLookup("prompt_lookup", 4, 1, 3), seed) for seed in range(3)]
    for given in tasks:
        given.stream = crowd.add(given.decoding(), max_concurrency=2)
    collect(tasks, crowd.round())  # the prompts
    assert not any(given.finish for given in tasks)
    crowd.round()
    assert made["target"].steps[-1] == 3


@pytest.mark.parametrize(
    "seed", [*range(60), *(pytest.param(n, marks=pytest.mark.slow) for n in range(60, 200))]
)
def test_every_answer_of_a_random_schedule_is_that_of_its_request_alone(seed: int) -> None:
    """Arrivals, cancellations, small pools, small steps and all methods, mixed."""
    rng = np.random.default_rng(seed)
    made = engines(blocks=int(rng.integers(9, 30)))
    tasks = [
        task(METHODS[rng.integers(len(METHODS))], 1000 * seed + n, int(rng.integers(1, 120)), 30)
        for n in range(rng.integers(2, 9))
    ]
    for given in tasks[1::3]:  # some begin alike
        given.prompt = tasks[0].prompt + given.prompt[:3]
    crowd = batcher(made, rows=int(rng.choice([64, 80, 128])))
    waiting = list(tasks)
    for _ in range(3000):
        if waiting and (not crowd.streams or rng.random() < 0.3):
            arriving = waiting.pop()
            arriving.stream = crowd.add(arriving.decoding(), adaptive=bool(rng.random() < 0.7))
        collect(tasks, crowd.round())
        if rng.random() < 0.03 and crowd.streams:
            leaving = crowd.streams[rng.integers(len(crowd.streams))]
            next(t for t in tasks if t.stream is leaving).cancelled = True
            crowd.remove(leaving)
        if not waiting and not crowd.streams:
            break
    for given in tasks:
        want = given.expected()
        if given.cancelled:
            want = want[: len(given.tokens)]
        assert given.tokens == want, given.method
    assert made["target"].pool.used == made["draft"].pool.used == 0
