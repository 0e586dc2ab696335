"""Answers of a target that a server runs, in parallel requests to its OpenAI API.

Servers that return token ids (vLLM, trtllm-serve) get the prompt in tokens. Others get the
messages, which they render with the target's chat template; the text of their answer is tokenized
here, and the token that ends a turn is added to an answer that is complete.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch

from specpipe.config.training import SelfDistillation
from specpipe.core.conversation import Conversation
from specpipe.core.errors import ConfigError, Unavailable
from specpipe.serve.client import Client, Options, Piece
from specpipe.train.corpus.prompts import Prompt, chat_of
from specpipe.train.target import Target
from specpipe.train.text import Bools, in_template

WAITS_S = (1.0, 4.0, 15.0, 60.0)  # before a request is sent again to a server that was busy
ALIKE = 0.8  # share of the greedy tokens that the target must find likeliest, too
AHEAD = 4  # times `batch_size` requests that may wait for the answer to an earlier prompt
COMPARED = 4  # answers that are compared with the target
_TURN = "\N{OBJECT REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class ServedTarget:
    """The server of a target, and how it is asked."""

    client: Client
    target: Target
    how: SelfDistillation
    wait: Callable[[float], None] = time.sleep

    def answers(
        self, prompts: Sequence[Prompt], tokens: Sequence[Sequence[int]], seed: int
    ) -> Generator[list[int], None, None]:
        """Yield the answer to every prompt, in tokens with the end token, if it has ended.

        Prompt i is sampled with `seed` + i. Raises what `Client.stream` raises, Unavailable after
        some trials; ConfigError if the first greedy answers are not those of the target.
        """
        with closing(self._in_order(zip(prompts, tokens, count(seed), strict=False))) as found:
            first = list(islice(found, COMPARED))
            if self.how.temperature == 0:
                self._compare(tokens[: len(first)], first)
            yield from first
            yield from found

    def _in_order(
        self, asked: Iterable[tuple[Prompt, Sequence[int], int]]
    ) -> Generator[list[int], None, None]:
        """Yield the answers in the order of the prompts, while later ones are in flight."""
        pool = ThreadPoolExecutor(self.how.batch_size)
        waiting: deque[Future[list[int]]] = deque()
        try:
            for each in asked:
                waiting.append(pool.submit(self._patiently, *each))
                if len(waiting) > AHEAD * self.how.batch_size:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # what waits for its turn is not sent any more
            pool.shutdown(cancel_futures=True)

    def _patiently(self, prompt: Prompt, tokens: Sequence[int], seed: int) -> list[int]:
        for wait_s in WAITS_S:
            try:
                return self._answer(prompt, tokens, seed)
            except Unavailable:
                self.wait(wait_s)
        return self._answer(prompt, tokens, seed)

    def _answer(self, prompt: Prompt, tokens: Sequence[int], seed: int) -> list[int]:
        options = self._options(seed)
        if self.client.endpoint.tokens is not None:
            pieces = list(self.client.stream_tokens(tokens, options))
            return [token for piece in pieces for token in piece.tokens]
        chat = chat_of(prompt)
        asked = Conversation(tuple(chat.messages), tuple(chat.tools))
        return self._tokens(list(self.client.stream(asked, options)))

    def _options(self, seed: int) -> Options:
        how = self.how
        if how.temperature == 0:
            return Options(max_tokens=how.max_tokens)
        return Options(how.max_tokens, temperature=how.temperature, top_p=1.0, seed=seed)

    def _tokens(self, pieces: Sequence[Piece]) -> list[int]:
        """Return the tokens of an answer in text; at most `max_tokens`."""
        text, reason = "".join(piece.text for piece in pieces), pieces[-1].finish_reason
        found: list[int] = self.target.tokenizer(text, add_special_tokens=False)["input_ids"]
        if reason != "length" and len(found) < self.how.max_tokens:
            found = [*found, turn_end(self.target)]
        return found[: self.how.max_tokens]

    def _compare(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> None:
        """Raise ConfigError unless the target finds most tokens of greedy answers likeliest."""
        hits = [_likeliest(self.target, p, a) for p, a in zip(prompts, answers, strict=True) if a]
        right, total = sum(int(h.sum()) for h in hits), sum(map(len, hits))
        if right < ALIKE * total:
            raise ConfigError(
                f"the server at {self.client.url} is not the target: of {total} tokens of its "
                f"answers, the target finds {right} likeliest",
                hint="serve target.model there, without temperature, or set "
                "train.self_distillation.endpoint to another server",
            )


@torch.no_grad()
def _likeliest(target: Target, prompt: Sequence[int], answer: Sequence[int]) -> Bools:
    """Return for every token of an answer whether the target finds it likeliest."""
    ids = torch.tensor([[*prompt, *answer]], device=target.device)
    logits = target.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    found: Bools = logits.argmax(-1).cpu().numpy() == np.asarray(answer)
    return found


def turn_end(target: Target) -> int:
    """Return the end token that the chat template writes after an answer, else the first one."""
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _TURN}]
    after = in_template(target.tokenizer, chat, answer=False).split(_TURN)[-1]
    written = target.tokenizer(after, add_special_tokens=False)["input_ids"]
    return next((token for token in written if token in target.end_ids), target.end_ids[0])
