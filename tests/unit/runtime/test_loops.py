"""The loop over draft and target: lossless, streaming, counted whole, ending for a known reason."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from specpipe.core.contracts import Floats, Sampling
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.runtime import loops
from specpipe.runtime.calls import Call, Reply
from specpipe.runtime.exchange import EngineProgress, Request
from specpipe.runtime.failures import EngineError
from specpipe.runtime.loops import draft_and_verify, follow_engine
from specpipe.runtime.triton import requests
from specpipe.runtime.triton.tensors import call_tensors
from specpipe.runtime.verifying import CheckedCall, Prefixes, answer
from specpipe.speculate.decode import Limits
from tests.helpers import distributions, scripted_engine
from tests.helpers.distributions import Dice, exact_distribution, excess, outcomes
from tests.helpers.scripted_model import Distribution
from tests.helpers.worlds import PROMPT, World

WORLD = World(vocab_size=3)
DRAWS = 2000  # fewer hide the second mistake below


@dataclass
class ScriptedEngine:
    """Answers calls as `tensorrt_llm` does, from a distribution; remembers its calls."""

    distribution: Distribution
    vocab_size: int = 3
    calls: list[Call] = field(default_factory=list)

    def infer(self, call: Call) -> Generator[Reply, None, None]:
        self.calls.append(call)
        bias = np.zeros(self.vocab_size, np.float32)
        for token, amount in call.bias:
            bias[token] += amount
        question = CheckedCall(
            call.prompt, call.max_tokens, call.sampling, (), call.draft, call.draft_logits,
            bias if call.bias else None, call.log_probs,
        )  # fmt: skip
        reply = answer(question, self.prefixes())
        yield reply if call.wants_logits else replace(reply, logits=None)

    def prefixes(self) -> Prefixes:
        return Prefixes(scripted_engine.ScriptedEngine(self.distribution, self.vocab_size), most=1)


@dataclass
class TellingEngine:
    """Yields prepared replies; counts how many were taken."""

    replies: list[Reply]
    calls: list[Call] = field(default_factory=list)
    taken: int = 0
    closed_early: bool = False

    def infer(self, call: Call) -> Generator[Reply, None, None]:
        self.calls.append(call)
        try:
            for reply in self.replies:
                self.taken += 1
                yield reply
        except GeneratorExit:
            self.closed_early = True
            raise


def request(max_tokens: int = 12, **changes: object) -> Request:
    sampling = changes.pop("sampling", Sampling())
    return Request("", tuple(PROMPT), sampling, Limits(max_tokens), **changes)  # type: ignore[arg-type]


def run(
    asked: Request, draft_name: str = "random", most: int = 3
) -> tuple[list[EngineProgress], ScriptedEngine, ScriptedEngine]:
    target, draft = ScriptedEngine(WORLD.target), ScriptedEngine(WORLD.drafts[draft_name])
    return list(draft_and_verify(target, draft, asked, most)), target, draft


def tokens(steps: list[EngineProgress]) -> list[int]:
    return [token for step in steps for token in step.tokens]


@pytest.mark.parametrize("draft_name", WORLD.drafts)
@pytest.mark.parametrize("most", [0, 1, 3, 7])
def test_greedy_output_is_that_of_plain_decoding(draft_name: str, most: int) -> None:
    steps, _, _ = run(request(20), draft_name, most)
    assert tokens(steps) == WORLD.plain(Sampling(), Limits(20))
    assert steps[-1].finish == "length" and all(s.finish is None for s in steps[:-1])


def enumerated(sampling: Sampling, draft_name: str, *, use_draft_logits: bool) -> Floats:
    """Return the joint distribution of three tokens over all draws of both engines."""
    joint = np.zeros((3,) * distributions.LENGTH)
    asked = request(distributions.LENGTH, sampling=sampling, use_draft_logits=use_draft_logits)

    def program(dice: Dice) -> list[int]:
        with pytest.MonkeyPatch.context() as patch:
            distributions.decide_by(dice, patch)
            return tokens(run(asked, draft_name, 2)[0])

    for output, odds in outcomes(program):
        joint[distributions.padded(output)] += odds
    return joint


@pytest.mark.parametrize("use_draft_logits", [True, False])
@pytest.mark.parametrize("draft_name", WORLD.drafts)
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(top_k=0, temperature=0.7),
        Sampling(top_k=2),
        Sampling(top_k=0, top_p=0.8),
        Sampling(top_k=0, end_ids=(2, 0), min_tokens=2),
        Sampling(top_k=0, repetition_penalty=1.5, frequency_penalty=0.4),
    ],
)
def test_sampled_output_has_exactly_the_targets_distribution(
    sampling: Sampling, draft_name: str, use_draft_logits: bool
) -> None:
    got = enumerated(sampling, draft_name, use_draft_logits=use_draft_logits)
    np.testing.assert_allclose(
        got, exact_distribution(WORLD, sampling), atol=1e-6
    )  # logits are float32


def drawn(draws: int) -> Floats:
    counts = np.zeros((3,) * distributions.LENGTH)
    for seed in range(draws):
        asked = request(
            distributions.LENGTH, sampling=Sampling(top_k=0, seed=seed), use_draft_logits=True
        )
        counts[tuple(tokens(run(asked, "identical", 2)[0]))] += 1
    return counts


@pytest.mark.slow
def test_thousands_of_seeds_draw_from_the_targets_distribution() -> None:
    assert excess(exact_distribution(WORLD, Sampling(top_k=0)), drawn(DRAWS)) < 5


@pytest.mark.slow
@pytest.mark.parametrize("broken", [lambda value: 7, lambda value: value // 2])
def test_engines_that_share_a_seed_would_be_noticed(
    broken: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One seed for all calls, or one for draft and target: what upstream's loop sends."""
    monkeypatch.setattr(loops, "mixed_seed", broken)
    assert excess(exact_distribution(WORLD, Sampling(top_k=0)), drawn(DRAWS)) > 5


@pytest.mark.slow
def test_draft_logits_accept_more_than_comparison_does() -> None:
    def rate(*, use_draft_logits: bool) -> float:
        sampling = Sampling(top_k=0, seed=5)
        asked = request(600, sampling=sampling, use_draft_logits=use_draft_logits)
        counters = run(asked, "identical")[0][-1].counters
        return counters.accepted_draft_tokens / counters.draft_tokens

    assert rate(use_draft_logits=True) == 1.0
    assert rate(use_draft_logits=False) < 0.9


def test_no_two_calls_of_a_request_share_a_seed() -> None:
    _, target, draft = run(request(30, sampling=Sampling(top_k=0, seed=3)))
    seeds = [call.sampling.seed for call in (*target.calls, *draft.calls)]
    assert len(set(seeds)) == len(seeds)
    again = [c.sampling.seed for c in run(request(30, sampling=Sampling(top_k=0, seed=3)))[1].calls]
    assert again == [call.sampling.seed for call in target.calls]


def test_every_call_carries_the_options_of_the_request() -> None:
    sampling = Sampling(temperature=0.5, top_k=2, presence_penalty=0.3, bad_words=((1, 2),))
    _, target, draft = run(request(20, sampling=sampling, bias=((1, 2.5),)))
    assert len(target.calls) > 3
    for call in (*target.calls, *draft.calls):
        assert replace(call.sampling, seed=0) == sampling and call.bias == ((1, 2.5),)


def test_a_bias_decides_in_every_step() -> None:
    steps, target, _ = run(request(12, bias=((2, 100.0),)))
    assert tokens(steps) == [2] * 12 and len(target.calls) > 1


def test_min_tokens_counts_from_the_beginning_of_the_answer() -> None:
    sampling = Sampling(end_ids=(WORLD.plain(Sampling(), Limits(1))[0],), min_tokens=7)
    steps, target, _ = run(request(20, sampling=sampling))
    assert tokens(steps) == WORLD.plain(sampling, Limits(20))
    assert target.calls[0].sampling.min_tokens == 7
    assert target.calls[1].sampling.min_tokens == 7 - len(steps[0].tokens)


def test_an_end_token_ends_the_answer_and_is_in_it() -> None:
    end = WORLD.plain(Sampling(), Limits(9))[-1]
    steps, _, _ = run(request(20, sampling=Sampling(end_ids=(end,))))
    assert steps[-1].finish == "end_id" and tokens(steps).count(end) == 1
    assert tokens(steps)[-1] == end


def test_an_engine_that_keeps_its_end_token_to_itself_ends_the_answer() -> None:
    target = TellingEngine([Reply(())])
    (only,) = draft_and_verify(target, TellingEngine([Reply((1, 1))]), request(9), 2)
    assert only.finish == "end_id" and only.tokens == ()


def test_an_engine_that_says_too_much_is_cut() -> None:
    target = TellingEngine([Reply((1, 1, 1))])
    steps = list(draft_and_verify(target, TellingEngine([Reply((1, 1, 1, 1))]), request(7), 2))
    assert tokens(steps) == [1] * 7
    assert all(len(call.draft) <= 2 for call in target.calls)


def test_counters_are_those_of_the_whole_request() -> None:
    steps, target, _ = run(request(20), "identical")
    last = steps[-1].counters
    assert last.steps == len(target.calls) and last.output_tokens == 20
    assert last.draft_tokens == last.accepted_draft_tokens == 20 - len(target.calls)
    assert sum(len(c.draft) for c in target.calls) == last.draft_tokens
    assert [s.counters.output_tokens for s in steps] == sorted(
        s.counters.output_tokens for s in steps
    )
    times = (last.arrival_ns, last.first_scheduled_ns, last.first_token_ns, last.last_token_ns)
    assert list(times) == sorted(times)


def test_rejected_guesses_are_counted_as_drafted_only() -> None:
    last = run(request(20), "adversarial")[0][-1].counters
    assert last.draft_tokens > last.accepted_draft_tokens


def test_log_probabilities_come_from_the_target_alone() -> None:
    steps, _, draft = run(request(15, log_probs=True))
    assert all(len(step.log_probs) == len(step.tokens) for step in steps)
    assert not any(call.log_probs for call in draft.calls)


def test_the_last_token_is_never_drafted() -> None:
    _, target, draft = run(request(1))
    assert not draft.calls and target.calls[0].max_tokens == 1


def test_logits_are_asked_for_only_if_they_are_used() -> None:
    _, target, draft = run(request(9))
    assert not any(c.wants_logits for c in draft.calls)
    assert all(c.draft_logits is None for c in target.calls)
    _, target, draft = run(request(9, use_draft_logits=True))
    assert all(c.wants_logits for c in draft.calls)
    assert all(len(c.draft_logits) == len(c.draft) for c in target.calls if c.draft)


def test_a_request_may_ask_for_fewer_guesses_but_not_for_more() -> None:
    _, _, draft = run(request(9, num_draft_tokens=1))
    assert {call.max_tokens for call in draft.calls} == {1}
    assert not run(request(9, num_draft_tokens=0))[2].calls
    for number in (-1, 4):
        with pytest.raises(ConfigError, match=f"num_draft_tokens is {number}: must be from 0 to 3"):
            run(request(9, num_draft_tokens=number))


def test_leaving_the_loop_calls_no_engine_again() -> None:
    target, draft = ScriptedEngine(WORLD.target), ScriptedEngine(WORLD.target)
    with closing(draft_and_verify(target, draft, request(50), 3)) as steps:
        next(steps)
    assert len(target.calls) == len(draft.calls) == 1


def test_an_engines_error_is_handed_on() -> None:
    class Failing:
        def infer(self, call: Call) -> Iterator[Reply]:
            raise EngineError("INTERNAL", "out of blocks")
            yield

    with pytest.raises(EngineError, match="out of blocks"):
        list(draft_and_verify(ScriptedEngine(WORLD.target), Failing(), request(9), 2))  # type: ignore[arg-type]


def test_an_engine_of_its_own_is_followed_to_its_end() -> None:
    engine = TellingEngine([Reply((1, 2), (-1.0, -2.0), drafted=3, accepted=1), Reply((0,))])
    steps = list(follow_engine(engine, request(3, log_probs=True), 3, can_be_plain=False))
    assert [step.tokens for step in steps] == [(1, 2), (0,), ()]
    assert steps[-1].finish == "length" and steps[0].log_probs == (-1.0, -2.0)
    last = steps[-1].counters
    assert (last.draft_tokens, last.accepted_draft_tokens, last.output_tokens) == (3, 1, 3)
    assert engine.calls[0].max_tokens == 3 and engine.calls[0].log_probs


def test_an_engine_that_ends_early_has_met_its_end_token() -> None:
    *_, last = follow_engine(TellingEngine([Reply((1,))]), request(9), 3, can_be_plain=False)
    assert last.finish == "end_id"


def test_leaving_an_engine_closes_its_call() -> None:
    engine = TellingEngine([Reply((1,)), Reply((2,)), Reply((0,))])
    with closing(follow_engine(engine, request(9), 3, can_be_plain=False)) as steps:
        next(steps)
    assert engine.closed_early and engine.taken == 1


def test_an_engine_that_drafts_by_itself_cannot_draft_less() -> None:
    with pytest.raises(Unsupported, match="drafts 3 tokens a step, or none with 0"):
        asked = request(9, num_draft_tokens=1)
        list(follow_engine(TellingEngine([]), asked, 3, can_be_plain=True))
    engine = TellingEngine([Reply((1,))])
    list(follow_engine(engine, request(9, num_draft_tokens=0), 3, can_be_plain=True))
    assert not engine.calls[0].speculates


@dataclass
class TensorEngine(ScriptedEngine):
    """Takes calls as upstream's tensors, so with one `end_id`; others can only be stop words."""

    def infer(self, call: Call) -> Generator[Reply, None, None]:
        self.calls.append(call)
        tensors = call_tensors(call, "1x", self.vocab_size, stream=False)
        given = requests.sampling(
            tensors, (), requests.word_ids(tensors, "bad_words_list"), prefix="runtime_"
        )
        question = CheckedCall(
            call.prompt, call.max_tokens, given, requests.word_ids(tensors, "stop_words_list"),
            call.draft, call.draft_logits, None, call.log_probs,
        )  # fmt: skip
        yield answer(question, self.prefixes())


@pytest.mark.parametrize("min_tokens", [0, 1, 4, 9])
@pytest.mark.parametrize("most", [0, 3])
def test_engines_that_know_one_end_token_stop_at_all_of_them(most: int, min_tokens: int) -> None:
    world = World(vocab_size=8)
    for end in range(8):
        sampling = Sampling(end_ids=((end + 1) % 8, end), min_tokens=min_tokens)
        expected = world.plain(sampling, Limits(20))
        finish = "end_id" if expected[-1] in sampling.end_ids else "length"
        asked = request(20, sampling=sampling)
        for draft_name in world.drafts:
            target, draft = (
                TensorEngine(distribution, 8)
                for distribution in (world.target, world.drafts[draft_name])
            )
            steps = list(draft_and_verify(target, draft, asked, most))
            assert tokens(steps) == expected and steps[-1].finish == finish
        steps = list(follow_engine(TensorEngine(world.target, 8), asked, 3, can_be_plain=False))
        assert tokens(steps) == expected and steps[-1].finish == finish
        assert steps[-1].counters.output_tokens == len(expected)


def test_the_first_end_token_is_sent_as_end_id_and_the_others_as_stop_words() -> None:
    tensors = call_tensors(Call((1,), 4, Sampling(end_ids=(7, 8, 9))), "1x", 16, stream=False)
    assert tensors["end_id"].tolist() == tensors["pad_id"].tolist() == [[7]]
    assert requests.word_ids(tensors, "stop_words_list") == ((8,), (9,))


def test_an_engine_that_goes_on_after_an_end_token_is_cut_and_stopped() -> None:
    engine = TellingEngine([Reply((1, 2, 0), (-1.0, -2.0, -3.0)), Reply((1,)), Reply((1,))])
    asked = request(9, sampling=Sampling(end_ids=(0, 2)), log_probs=True)
    steps = list(follow_engine(engine, asked, 3, can_be_plain=False))
    assert tokens(steps) == [1, 2] and steps[0].log_probs == (-1.0, -2.0)
    assert steps[-1].finish == "end_id" and steps[-1].counters.output_tokens == 2
    assert engine.closed_early and engine.taken == 2


@pytest.mark.parametrize("asked", [0, 2])
def test_an_engine_that_always_speculates_refuses_to_be_called_plain(asked: int) -> None:
    engine = TellingEngine([Reply((1,))])
    with pytest.raises(Unsupported, match=f"is {asked}: .*3 tokens in every step of every request"):
        request_ = request(9, num_draft_tokens=asked)
        list(follow_engine(engine, request_, 3, can_be_plain=False))
    assert not engine.calls
    list(follow_engine(engine, request(9, num_draft_tokens=3), 3, can_be_plain=False))
    assert engine.calls[0].speculates


def test_a_run_without_speculation_is_plain_already() -> None:
    engine = TellingEngine([Reply((1,))])
    for asked in (0, None):
        list(follow_engine(engine, request(9, num_draft_tokens=asked), 0, can_be_plain=False))
    sent = [call_tensors(call, "1x", 16, stream=True) for call in engine.calls]
    assert len(sent) >= 2 and not any(name.startswith("lookahead") for t in sent for name in t)
