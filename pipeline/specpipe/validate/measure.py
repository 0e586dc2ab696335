"""Send the same prompts to the reference and to the endpoint, in turn.

The reference answers first and is dropped before a server is started, so that only one model is in
memory at a time. The arms of one server take turns.
"""

from collections.abc import Callable, Mapping, Sequence

from specpipe.config.run_config import ValidateOptions
from specpipe.core.conversation import Conversation
from specpipe.core.endpoint import Model
from specpipe.core.errors import StageFailed
from specpipe.serve.client import Client, Generation, Options, Piece, unshared
from specpipe.validate.arms import ServedArm
from specpipe.validate.judge import ReferenceModel
from specpipe.validate.questions import Question, Questions
from specpipe.validate.trials import (
    Arm,
    Decoding,
    Divergence,
    ExpectedAnswer,
    Trial,
    find_divergence,
)

Progress = Callable[[int, int], None]
WARM_UP_TOKENS = 8


def ask_reference(
    reference: ReferenceModel,
    questions: Questions,
    options: ValidateOptions,
    progress: Progress = lambda done, total: None,
) -> tuple[list[Trial], dict[int, ExpectedAnswer]]:
    """Let transformers answer every prompt `repeats` times, after an uncounted answer."""
    trials: list[Trial] = []
    expected: dict[int, ExpectedAnswer] = {}
    tokenizer, end_ids = questions.tokenizer, questions.end_ids
    first = questions.asked[0].tokens
    reference.generate(first, min(WARM_UP_TOKENS, options.max_tokens), end_ids)
    total = options.repeats * len(questions.asked)
    for turn in range(total):
        number = turn % len(questions.asked)
        answer = reference.generate(questions.asked[number].tokens, options.max_tokens, end_ids)
        text = tokenizer.decode_answer(answer.tokens)
        ended = bool(answer.tokens) and answer.tokens[-1] in end_ids
        expected[number] = ExpectedAnswer(text, answer.tokens, answer.margins, ended)
        trials.append(
            Trial(number, "reference", text, len(answer.tokens), answer.first_s, answer.total_s)
        )
        progress(turn + 1, total)
    return trials, expected


def ask_server(
    client: Client,
    arms: Sequence[ServedArm],
    asked: Sequence[Question],
    options: ValidateOptions,
    progress: Progress = lambda done, total: None,
) -> list[Trial]:
    """Send every prompt through every arm `repeats` times, as users send it; the arms take turns.

    Every request reads its prompt as a whole: the prefix cache would favour the later arm.

    An uncounted request warms every arm up, and opens the channel that the others use. Raises
    Unavailable or StageFailed if the server cannot be reached or dies.
    """
    for arm in arms:
        _ask(client, arm, 0, asked[0], min(WARM_UP_TOKENS, options.max_tokens))
    trials: list[Trial] = []
    total = options.repeats * len(asked)
    for turn in range(total):
        number = turn % len(asked)
        for i in range(len(arms)):
            arm = arms[(turn + i) % len(arms)]
            trials.append(_ask(client, arm, number, asked[number], options.max_tokens))
        progress(turn + 1, total)
    return trials


def ask_front(client: Client, model: str, question: Question, max_tokens: int) -> str:
    """Return the answer of one of the text models to a request with default options."""
    return client.generate(question.prompt, Options(max_tokens=max_tokens), model=model).text


def _ask(client: Client, arm: ServedArm, number: int, question: Question, most: int) -> Trial:
    options = Options(max_tokens=most, num_draft_tokens=arm.num_draft_tokens)
    options = unshared(options, client.endpoint.text)
    try:
        pieces = list(_pieces(client, question.prompt, options))
        answer = client.collect(iter(pieces))
    except StageFailed as error:
        raise type(error)(f"validate: prompt {number}, {arm.arm}: {error}") from error
    count = answer.output_tokens or 0
    first = count if len(pieces) == 1 else pieces[0].acceptance.accepted_draft_tokens + 1
    return Trial(
        number,
        arm.arm,
        answer.text,
        count,
        answer.first_s,
        answer.total_s,
        first,
        max(piece.acceptance.draft_tokens for piece in pieces),
        max(piece.acceptance.accepted_draft_tokens for piece in pieces),
        counted=bool(client.endpoint.text.tensors.output_tokens),
    )


def _pieces(client: Client, prompt: str | Conversation, options: Options) -> Sequence[Piece]:
    if client.endpoint.text.decoupled:
        return list(client.stream(prompt, options))
    return [_one_piece(client.generate(prompt, options))]


def _one_piece(answer: Generation) -> Piece:
    return Piece(answer.text, (), True, answer.acceptance, answer.output_tokens, answer.total_s)


def decodes_alike(tokens: Model | None, arm: Arm) -> bool:
    """Tell whether the model that takes tokens decodes as an arm of the text model does."""
    if tokens is None:
        return False
    return tokens.can_decode_plainly if arm == "plain" else tokens.speculates


def decode(
    client: Client, arm: ServedArm, number: int, questions: Questions, max_tokens: int
) -> Decoding:
    """Return a prompt's tokens through an arm, from the model that takes tokens."""
    tokens = client.endpoint.tokens
    options = Options(
        max_tokens=max_tokens, end_ids=questions.end_ids, num_draft_tokens=arm.num_draft_tokens
    )
    asked = questions.asked[number].tokens
    answer = client.collect(client.stream_tokens(asked, options))
    seen = tokens is not None and tokens.decoupled
    steps = tuple(n for n in answer.step_tokens if n) if seen else ()
    accepted = answer.acceptance.accepted_draft_tokens
    return Decoding(number, arm.arm, answer.tokens, steps, accepted)


def find_divergences(
    trials: Sequence[Trial], decodings: Sequence[Decoding], expected: Mapping[int, ExpectedAnswer]
) -> list[Divergence]:
    """Return at most one divergence for each prompt of each served arm."""
    tokens = {(d.prompt, d.arm): d for d in decodings}
    texts: dict[tuple[int, Arm], list[Trial]] = {}
    for trial in trials:
        if trial.arm != "reference":
            texts.setdefault((trial.prompt, trial.arm), []).append(trial)
    found = (
        find_divergence(expected[number], answers, tokens.get((number, arm)))
        for (number, arm), answers in texts.items()
    )
    return [divergence for divergence in found if divergence is not None]
