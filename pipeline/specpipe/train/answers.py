"""Self-distillation: the target answers prompts, and the answers are kept as JSON lines.

One line a prompt, written a batch at a time: what was answered before an interruption is not asked
again. A batch's sampling seed depends only on its number, so a resumed file equals an
uninterrupted one.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from specpipe.config.training import SelfDistillation
from specpipe.core.artifacts import digest_json, write_text
from specpipe.core.contracts import Sampling, length_to_end
from specpipe.core.errors import ConfigError
from specpipe.train.corpus.prompts import Prompt, prompt_tokens
from specpipe.train.disk import explained
from specpipe.train.served_answers import ServedTarget
from specpipe.train.target import Target
from specpipe.train.text import Document

Progress = Callable[[int, int], None]
IN_FLIGHT = 8  # times `batch_size` answers of a server that are written together


def answers_key(target: Target, prompts: Sequence[Prompt], how: SelfDistillation, seed: int) -> str:
    """Return what the answers depend on, as a digest."""
    options: list[object] = [how.max_tokens, how.temperature, how.batch_size, seed]
    options += [target.dtype, target.end_ids, *["served"] * bool(how.endpoint)]
    return digest_json([target.digest, list(prompts), options])


def answer_prompts(
    target: Target,
    prompts: Sequence[Prompt],
    how: SelfDistillation,
    seed: int,
    folder: Path,
    *,
    progress: Progress,
    served: ServedTarget | None = None,
) -> list[Document]:
    """Return prompt and answer of every prompt as a document in which the answer is learned.

    The answers are cached in `folder` as answers-<key>.jsonl; short prompts come first. They are
    those of the `served` target, if there is one.
    """
    file = folder / f"answers-{answers_key(target, prompts, how, seed)[:16]}.jsonl"
    asked = [prompt_tokens(prompt, target.tokenizer) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (len(asked[i]), i))
    size = how.batch_size * (IN_FLIGHT if served else 1)
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for number, batch in enumerate(batches):
        if len(lines) < sum(map(len, batches[: number + 1])):
            tokens = [asked[i] for i in batch]
            if served is not None:
                chosen = [prompts[i] for i in batch]
                answers = served.answers(chosen, tokens, seed + number * size)
            else:
                answers = _answer(target, tokens, how, seed + number)
            lines += [
                json.dumps({"prompt": prompts[i], "answer": target.tokenizer.decode(a),
                            "prompt_tokens": asked[i], "answer_tokens": a})
                for i, a in zip(batch, answers, strict=True)
            ]  # fmt: skip
            with explained(file):
                write_text(file, "\n".join(lines) + "\n")
        progress(len(lines), len(prompts))
    return [_document(line, file) for line in lines]


def _answer(
    target: Target, prompts: Sequence[Sequence[int]], how: SelfDistillation, seed: int
) -> list[list[int]]:
    """Answer a batch, sampled at `temperature` from the whole distribution."""
    sampling = Sampling(top_k=1 if how.temperature == 0 else 0, temperature=how.temperature)
    return generate(target, prompts, how.max_tokens, sampling, seed)


@torch.no_grad()
def generate(
    target: Target,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampling: Sampling,
    seed: int,
) -> list[list[int]]:
    """Continue a batch of prompts, padded on the left, up to an end token, which is included.

    Of `sampling`, temperature, top_k and top_p count.
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[target.end_ids[0]] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    torch.manual_seed(seed)
    options: dict[str, float] = {"do_sample": False}
    if not sampling.greedy:
        options = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        }
    out = target.model.generate(
        input_ids=ids.to(target.device),
        attention_mask=mask.to(target.device),
        max_new_tokens=max_tokens,
        pad_token_id=target.end_ids[0],
        eos_token_id=list(target.end_ids),
        **options,
    )
    answers = [row[width:].tolist() for row in out]
    return [answer[: length_to_end(answer, target.end_ids)] for answer in answers]


def _document(line: str, file: Path) -> Document:
    try:
        record = json.loads(line)
        asked, prompt = record["prompt"], record["prompt_tokens"]
        answer = record["answer_tokens"]
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{file}: a damaged line", hint="delete the file") from error
    learned = np.arange(len(prompt) + len(answer)) >= len(prompt)
    category = "" if isinstance(asked, str) else asked.get("category", "")
    return Document(np.asarray(prompt + answer, np.int64), learned, category)
