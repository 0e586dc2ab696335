"""Self-distillation: the target answers prompts, and the answers are kept as JSON lines.

One line a prompt, written a batch at a time: what was answered before an interruption is not asked
again. A batch's sampling seed depends only on its number, so a resumed file equals an
uninterrupted one.
"""

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from specpipe.config.training import SelfDistillation
from specpipe.core.artifacts import digest_json
from specpipe.core.contracts import Sampling, length_to_end
from specpipe.core.errors import ConfigError
from specpipe.train.corpus.prompts import Prompt, prompt_tokens
from specpipe.train.disk import explained
from specpipe.train.served_answers import ServedTarget
from specpipe.train.target import Target
from specpipe.train.text import Document

Progress = Callable[[int, int], None]


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
    lines = _kept_lines(file, len(order), how.batch_size)
    rest = order[len(lines) :]
    tokens = [asked[i] for i in rest]
    if served is None:
        answers = _own_answers(target, tokens, how, seed + len(lines) // how.batch_size)
    else:
        answers = served.answers([prompts[i] for i in rest], tokens, seed + len(lines))
    progress(len(lines), len(prompts))
    with closing(answers):
        for begin in range(0, len(rest), how.batch_size):
            batch = [
                json.dumps({"prompt": prompts[i], "answer": target.tokenizer.decode(a),
                            "prompt_tokens": asked[i], "answer_tokens": a})
                for i, a in zip(rest[begin : begin + how.batch_size], answers, strict=False)
            ]  # fmt: skip
            with explained(file), file.open("a", encoding="utf-8") as out:
                out.writelines(f"{line}\n" for line in batch)
            lines += batch
            progress(len(lines), len(prompts))
    return [_document(line, file) for line in lines]


def _kept_lines(file: Path, total: int, batch_size: int) -> list[str]:
    """Return the lines of the batches that are whole, and cut off what a kill has left of one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []
    if len(lines) < total:
        lines = lines[: len(lines) - len(lines) % batch_size]
        with file.open("ab") as out:
            out.truncate(sum(len(line.encode()) + 1 for line in lines))
    return lines


def _own_answers(
    target: Target, prompts: Sequence[Sequence[int]], how: SelfDistillation, seed: int
) -> Generator[list[int], None, None]:
    """Answer batch by batch, sampled at `temperature` from the whole distribution."""
    sampling = Sampling(top_k=1 if how.temperature == 0 else 0, temperature=how.temperature)
    for number, begin in enumerate(range(0, len(prompts), how.batch_size)):
        batch = prompts[begin : begin + how.batch_size]
        yield from generate(target, batch, how.max_tokens, sampling, seed + number)


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
