"""Sending the same tokens through the reference and through the endpoint, turn by turn."""

from collections.abc import Callable, Sequence

from specpipe.errors import StageFailed
from specpipe.serve.client import Client, Options, collect
from specpipe.validate.reference import Reference, ReferenceAnswer
from specpipe.validate.trials import ARMS, Arm, Divergence, Trial, Trials, find_divergence

Progress = Callable[[int, int], None]


def measure(
    client: Client,
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    end_ids: Sequence[int],
    repeats: int,
    speculates: bool,
    progress: Progress = lambda done, total: None,
) -> Trials:
    """Run every prompt through every arm `repeats` times; the arms alternate.

    A first, uncounted round of the first prompt warms every arm up. Raises StageFailed if the
    server cannot be reached or dies.
    """
    arms = ARMS if speculates else ARMS[:2]
    answers: dict[int, ReferenceAnswer] = {}
    trials: list[Trial] = []

    def one(number: int, arm: Arm, tokens: int) -> Trial:
        prompt = prompts[number]
        if arm != "reference":
            return _served(client, number, arm, prompt, tokens, end_ids)
        answer = reference.generate(prompt, tokens, end_ids)
        answers[number] = answer
        return Trial(number, arm, answer.tokens, answer.first_s, answer.total_s)

    for arm in arms:
        one(0, arm, min(8, max_tokens))
    total = repeats * len(prompts)
    for turn in range(total):
        number = turn % len(prompts)
        for i in range(len(arms)):
            trials.append(one(number, arms[(turn + i) % len(arms)], max_tokens))
        progress(turn + 1, total)
    return Trials(tuple(trials), tuple(_divergences(trials, answers)))


def _served(
    client: Client,
    number: int,
    arm: Arm,
    prompt: Sequence[int],
    max_tokens: int,
    end_ids: Sequence[int],
) -> Trial:
    drafts = 0 if arm == "plain" else None
    options = Options(max_tokens=max_tokens, end_ids=tuple(end_ids), num_draft_tokens=drafts)
    try:
        answer = collect(client.stream_tokens(prompt, options))
    except StageFailed as error:
        raise type(error)(f"validate: prompt {number}, {arm}: {error}") from error
    return Trial(
        number,
        arm,
        answer.tokens,
        answer.first_s,
        answer.total_s,
        tuple(n for n in answer.step_tokens if n),
        answer.acceptance.draft_tokens,
        answer.acceptance.accepted_draft_tokens,
    )


def _divergences(trials: Sequence[Trial], answers: dict[int, ReferenceAnswer]) -> list[Divergence]:
    found: dict[tuple[int, Arm], Divergence] = {}
    for trial in trials:
        if trial.arm == "reference" or (trial.prompt, trial.arm) in found:
            continue
        answer = answers[trial.prompt]
        difference = find_divergence(
            trial.prompt, trial.arm, answer.tokens, trial.tokens, answer.margins
        )
        if difference is not None:
            found[trial.prompt, trial.arm] = difference
    return list(found.values())
