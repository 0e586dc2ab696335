"""Speculation in a run's own server: tokens per second with and without it, in turn."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from specpipe.bench.precision import precision_of
from specpipe.bench.prompts import PromptSet
from specpipe.bench.served import Notify, Progress, Remote, called, send
from specpipe.config.run_config import RunConfig
from specpipe.core.endpoint import Model
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.plan.gates import speculates
from specpipe.run.run import Run
from specpipe.runtime.assembly import describe_endpoint
from specpipe.serve.client import Client, Generation, Options
from specpipe.validate.metrics import Figure, figure

WARM_UP_TOKENS = 16
Pair = tuple[Generation, Generation]  # the answers to one prompt, without and with speculation


@dataclass(frozen=True)
class SpeculationRow:
    """The figures of one run for one set of prompts."""

    run: str
    precision: str
    prompts: str  # the name of the set
    tokens_per_step: float | None  # all tokens by all steps; None: the server reports no steps
    tokens_per_s: Figure  # of each answer, prefill included
    plain_tokens_per_s: Figure  # without speculation
    speedup: Figure  # prompt by prompt
    overall_speedup: float  # of the mean times per token of all prompts
    equal_answers: int  # prompts whose answers are the same with and without speculation
    answers: int


def bench_speculation(
    run: Run,
    sets: Sequence[PromptSet],
    max_tokens: int,
    *,
    remote: Remote | None = None,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> list[SpeculationRow]:
    """Send a run's server every prompt with and without speculation.

    The server is the one at `remote`, or one that is built and started for it. Requests are greedy,
    in the chat template, one at a time; the two arms take turns. Returns a row for each set of
    prompts. Raises what `require_comparable`, `require_plain`, `called` and the client raise.
    """
    require_comparable(run.config, remote)
    with called(run, remote, notify) as client:
        require_plain(run.config, client.endpoint.text)
        rows = []
        for prompts in sets:
            options = Options(max_tokens=max_tokens)
            pairs = send_in_turn(client, prompts.prompts, options, progress)
            rows.append(summarise(run.config, prompts.name, pairs, _counts_drafts(client)))
        return rows


def require_comparable(config: RunConfig, remote: Remote | None = None) -> None:
    """Raise ConfigError if the run does not speculate, Unsupported if it always does.

    Whether a server at `remote` can decode plainly is known once it is called.
    """
    if not speculates(config):
        raise ConfigError(
            f"{config.path}: this run does not speculate: there is nothing to compare",
            hint="set speculation.method, or measure the run with `specpipe bench serving`",
        )
    if remote is None:
        require_plain(config, describe_endpoint(config).text)


def require_plain(config: RunConfig, model: Model) -> None:
    """Raise Unsupported if no request to the model can turn speculation off."""
    if not model.can_decode_plainly:
        raise Unsupported(
            f"{config.path}: no request can turn the speculation of method "
            f"{config.speculation.method} off",
            hint="set validate.baseline: build and run `specpipe validate`, which compares the run "
            "with a plain engine",
        )


def send_in_turn(
    client: Client, prompts: Sequence[str], options: Options, progress: Progress
) -> list[Pair]:
    """Send every prompt through both arms in alternating order, after an uncounted warm-up."""
    plain = replace(options, num_draft_tokens=0)
    few = min(WARM_UP_TOKENS, options.max_tokens)
    for arm in (plain, options):
        send(client, prompts[0], replace(arm, max_tokens=few))
    pairs = []
    for number, prompt in enumerate(prompts):
        order = (plain, options) if number % 2 else (options, plain)
        answers = {arm: send(client, prompt, arm) for arm in order}
        pairs.append((answers[plain], answers[options]))
        progress(number + 1, len(prompts))
    return pairs


def summarise(
    config: RunConfig, name: str, pairs: Sequence[Pair], counts_drafts: bool
) -> SpeculationRow:
    """Turn pairs of answers into figures; rates are per token, since answers differ in length."""
    ratios = [seconds_per_token(plain) / seconds_per_token(ours) for plain, ours in pairs]
    return SpeculationRow(
        run=config.name,
        precision=precision_of(config.engine),
        prompts=name,
        tokens_per_step=_tokens_per_step(pairs) if counts_drafts else None,
        tokens_per_s=figure([1 / seconds_per_token(ours) for _, ours in pairs]),
        plain_tokens_per_s=figure([1 / seconds_per_token(plain) for plain, _ in pairs]),
        speedup=figure(ratios),
        overall_speedup=statistics.mean(seconds_per_token(plain) for plain, _ in pairs)
        / statistics.mean(seconds_per_token(ours) for _, ours in pairs),
        equal_answers=sum(plain.text == ours.text for plain, ours in pairs),
        answers=len(pairs),
    )


def _tokens_per_step(pairs: Sequence[Pair]) -> float:
    """Return tokens by steps: every step emits the accepted drafts and one token of the target."""
    tokens = sum(_tokens(ours) for _, ours in pairs)
    return tokens / max(1, tokens - sum(o.acceptance.accepted_draft_tokens for _, o in pairs))


def seconds_per_token(answer: Generation) -> float:
    """Return the seconds per output token, prefill included."""
    return answer.total_s / _tokens(answer)


def _tokens(answer: Generation) -> int:
    return max(1, answer.output_tokens or 0)


def _counts_drafts(client: Client) -> bool:
    return client.endpoint.text.reports_acceptance
