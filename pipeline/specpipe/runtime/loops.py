"""The loop over a draft and a target that Triton serves, and the loop over one engine.

Upstream's loop (`tensorrt_llm_bls`) keeps the state of a request in the tensors of the last reply.
Here it is a sequence of tokens, so a request may stream, may leave out any tensor, ends for a
reason that is known, and is counted as a whole.
"""

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace

from specpipe.core.contracts import Sampling, length_to_end
from specpipe.core.errors import Unsupported
from specpipe.runtime.bounds import draft_tokens
from specpipe.runtime.calls import Call, Engine, Reply
from specpipe.runtime.exchange import Counters, EngineProgress, Request
from specpipe.speculate.decode import Finish, Step

_DRAFT, _TARGET = 0, 1  # whose random numbers a seed is for


def draft_and_verify(
    target: Engine, draft: Engine, request: Request, most: int
) -> Generator[EngineProgress, None, None]:
    """Yield one EngineProgress per call of the target, the last with a finish reason.

    Greedy output is the target's own, token for token. Sampled output has the target's
    distribution: a draft token is compared with the token that the target drew. With
    `use_draft_logits`, the engine accepts it by the ratio of both distributions.
    """
    limit = draft_tokens(request.num_draft_tokens, most)
    sequence = _Sequence(request)
    sequence.counters.first_scheduled_ns = time.monotonic_ns()
    finish: Finish | None = None
    while finish is None:
        count = min(limit, sequence.next_stretch() - 1)
        guess = _guess(draft, sequence, count)
        verified = _only(target, sequence.target_call(guess))
        step = sequence.take(verified, guess.tokens)
        finish = step.finish
        yield EngineProgress(step.tokens, step.log_probs, finish, replace(sequence.counters))


def follow_engine(
    engine: Engine, request: Request, most: int, *, can_be_plain: bool
) -> Generator[EngineProgress, None, None]:
    """Yield the answer of an engine that decodes by itself, speculating or not.

    An answer ends when the engine sends no more tokens, or with an end token that it returns:
    the C++ engines return all of them but the first, which they keep.
    Raises Unsupported for a number of draft tokens that the engine cannot be held to, and for
    `min_tokens` with a guide: the engine would forbid the end token where nothing else may follow,
    and a guide begins anew in every call, of which `next_stretch` makes several.
    """
    limit = draft_tokens(request.num_draft_tokens, most, any_number=not can_be_plain)
    if limit != most and not can_be_plain:  # not even 0 is possible
        raise Unsupported(
            f"num_draft_tokens is {limit}: the engine drafts {most} tokens in every step of every "
            "request"
        )
    if request.guide is not None and request.sampling.min_tokens:
        raise Unsupported(
            "min_tokens with a guide is not supported by this engine; leave min_tokens out, or let "
            "the guide ask for a longer answer"
        )
    sequence = _Sequence(request)
    counters = sequence.counters
    counters.first_scheduled_ns = time.monotonic_ns()
    ended = False
    while sequence.left and not ended:
        length = sequence.next_stretch()
        call = replace(
            sequence.call(),
            max_tokens=length,
            speculates=limit > 0 or most == 0,
            wants_acceptance=True,
            guide=request.guide,
        )
        before, used = len(sequence.generated), replace(counters)
        with closing(engine.infer(call)) as replies:
            for reply in replies:
                if ended:  # and the engine goes on: closing its call stops it
                    break
                step = sequence.follow(reply, used)
                ended = step.finish == "end_id"
                yield EngineProgress(step.tokens, step.log_probs, None, replace(counters))
        ended = ended or len(sequence.generated) - before < length
    yield EngineProgress((), (), "end_id" if ended else "length", replace(counters))


def _guess(draft: Engine, sequence: "_Sequence", count: int) -> Reply:
    """Return at most `count` tokens of the draft model; fewer if it draws an end token."""
    if count <= 0:
        return Reply(())
    reply = _only(draft, sequence.draft_call(count))
    return replace(reply, tokens=reply.tokens[:count])


def _only(engine: Engine, call: Call) -> Reply:
    """Return the answer to a short call, in one piece."""
    with closing(engine.infer(call)) as replies:
        found = list(replies)
    tokens = tuple(token for reply in found for token in reply.tokens)
    return replace(
        found[-1] if found else Reply(()),
        tokens=tokens,
        log_probs=tuple(score for reply in found for score in reply.log_probs),
    )


@dataclass
class _Sequence:
    """The tokens of one request so far."""

    request: Request
    generated: list[int] = field(default_factory=list)
    counters: Counters = field(default_factory=lambda: Counters(time.monotonic_ns()))

    @property
    def left(self) -> int:
        return self.request.limits.max_tokens - len(self.generated)

    @property
    def held(self) -> int:
        """Count the next tokens among which no end may be, where the engines need help with it.

        Engines know of one end token and forbid only that before `min_tokens`. The others are
        stop words to them: until then they are bad words, in calls that do not go beyond.
        """
        sampling = self.request.sampling
        return max(0, sampling.min_tokens - len(self.generated)) if sampling.end_ids[1:] else 0

    def next_stretch(self) -> int:
        """Return how many tokens the next call may add."""
        return min(self.left, self.held or self.left)

    def call(self, whose: int = _TARGET) -> Call:
        """Return the next call of an engine but for its draft and its length."""
        request = self.request
        return Call(
            prompt=(*request.prompt, *self.generated),
            max_tokens=1,
            sampling=self._sampling(whose),
            bias=request.bias,
            log_probs=request.log_probs and whose == _TARGET,
        )

    def draft_call(self, count: int) -> Call:
        return replace(
            self.call(_DRAFT), max_tokens=count, wants_logits=self.request.use_draft_logits
        )

    def target_call(self, guess: Reply) -> Call:
        """Return the call that verifies the draft and adds a token of the target."""
        draft = guess.tokens
        logits = guess.logits[: len(draft)] if guess.logits is not None and draft else None
        call = self.call()
        return replace(call, max_tokens=len(draft) + 1, draft=draft, draft_logits=logits)

    def _sampling(self, whose: int) -> Sampling:
        """Return the request's options for a call that knows nothing of the calls before.

        An engine counts `min_tokens` from its prompt, and begins its random numbers anew in every
        call: with one and the same seed all calls would draw the same, draft and target too.
        """
        sampling = self.request.sampling
        place = 2 * len(self.generated) + whose
        others = tuple((end,) for end in sampling.end_ids[1:]) if self.held else ()
        return replace(
            sampling,
            bad_words=(*sampling.bad_words, *others),
            min_tokens=max(0, sampling.min_tokens - len(self.generated)),
            seed=mixed_seed(mixed_seed(sampling.seed) + place),
        )

    def take(self, reply: Reply, draft: tuple[int, ...]) -> Step:
        """Append the tokens of the target; return them as a step."""
        tokens, finish = self._cut(reply.tokens)
        accepted = 0
        while accepted < min(len(draft), len(tokens)) and draft[accepted] == tokens[accepted]:
            accepted += 1
        step = Step(tokens, len(draft), accepted, finish, reply.log_probs[: len(tokens)])
        self.generated += tokens
        self.counters.add(step)
        return step

    def follow(self, reply: Reply, used: Counters) -> Step:
        """Append the tokens of an engine that drafts by itself, up to an end token.

        `used` are the counters from before its call: those in replies are of the call so far.
        """
        tokens = reply.tokens[: self.left]
        length = length_to_end(tokens, self.request.sampling.end_ids)
        tokens = tokens[:length]
        step = Step(tokens, 0, 0, "end_id" if length else None, reply.log_probs[: len(tokens)])
        self.generated += tokens
        counters = self.counters
        counters.add(step)
        counters.draft_tokens = max(counters.draft_tokens, used.draft_tokens + reply.drafted)
        counters.accepted_draft_tokens = max(
            counters.accepted_draft_tokens, used.accepted_draft_tokens + reply.accepted
        )
        return step

    def _cut(self, tokens: tuple[int, ...]) -> tuple[tuple[int, ...], Finish | None]:
        """Cut at the first reason to stop; an engine that sends nothing has met its end token."""
        kept = tokens[: self.left]
        if count := length_to_end(kept, self.request.sampling.end_ids):
            return kept[:count], "end_id"
        if not kept:
            return kept, "end_id"
        return kept, "length" if len(kept) == self.left else None


def mixed_seed(value: int) -> int:
    """Return a 63-bit seed that has nothing in common with those of nearby values (SplitMix64)."""
    mask = (1 << 64) - 1
    value = (value * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return (value ^ (value >> 31)) >> 1
