"""Calibrates what another batch shape does to plain decoding, and how far it is from the reference.

A few prompts are decoded one at a time and together, without speculation. The log probability of
every token that both ways emit is compared. A margin is a difference of two log probabilities, so
the noise of a margin is twice the largest change.
"""

from collections.abc import Sequence
from dataclasses import replace

from specpipe.serve.client import Client, Options, unshared
from specpipe.validate.arms import ServedArm
from specpipe.validate.differences import Noise
from specpipe.validate.load import ClosedLoop, run_load
from specpipe.validate.questions import Questions
from specpipe.validate.trials import Arm, Likelihoods

PROMPTS = 4  # that are decoded one at a time and together
PLAUSIBLE = -3.0  # nats: less likely tokens are no candidates of a greedy choice
Scored = tuple[tuple[int, ...], tuple[float, ...]]  # tokens and their log probabilities


def calibrate(client: Client, arm: ServedArm, questions: Questions, max_tokens: int) -> Noise:
    """Return the noise of another batch shape; not known where no request can measure it."""
    model = client.endpoint.tokens
    if model is None or not model.tensors.log_probs_flag or not model.can_decode_plainly:
        return Noise()
    options = Options(
        max_tokens=max_tokens, end_ids=questions.end_ids, log_probs=True,
        num_draft_tokens=0 if model.speculates else arm.num_draft_tokens,
    )  # fmt: skip
    asked = [question.tokens for question in questions.asked[:PROMPTS]]
    single = [_score(client, tokens, options) for tokens in asked]
    jobs = [lambda tokens=tokens: _score(client, tokens, options) for tokens in asked]
    together, _ = run_load(ClosedLoop(len(jobs)), jobs)
    changes = [
        abs(a - b)
        for first, second in zip(single, (sent.result for sent in together), strict=True)
        for a, b in _shared(first, second)
    ]
    return Noise(batch=2 * max(changes, default=0.0), tokens=len(changes))


def _score(client: Client, tokens: Sequence[int], options: Options) -> Scored:
    model = client.endpoint.tokens
    assert model is not None  # `calibrate` has checked it
    pieces = list(client.stream_tokens(tokens, unshared(options, model)))
    ids = tuple(token for piece in pieces for token in piece.tokens)
    return ids, tuple(value for piece in pieces for value in piece.log_probs)


def _shared(first: Scored, second: Scored) -> list[tuple[float, float]]:
    """Return the log probabilities of the tokens at which both answers still agree."""
    found = []
    for a, b, left, right in zip(first[0], second[0], first[1], second[1], strict=False):
        if a != b:
            break
        found.append((left, right))
    return found


def with_precision(noise: Noise, readings: Sequence[Likelihoods], arm: Arm) -> Noise:
    """Add the distance between the engine's reading of the texts and the reference's."""
    theirs = {r.prompt: r.log_likelihoods for r in readings if r.arm == "reference"}
    distances = [
        abs(a - b)
        for reading in readings
        if reading.arm == arm and reading.prompt in theirs
        for a, b in zip(theirs[reading.prompt], reading.log_likelihoods, strict=False)
        if a > PLAUSIBLE
    ]
    return replace(noise, precision=2 * max(distances) if distances else None)
