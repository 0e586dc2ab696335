"""Lets the target invent prompts: it continues where a user's turn would begin.

A chat model has seen many prompts in its training and gives back prompts like them (Xu et al. 2024,
"Magpie", arXiv 2406.08464). They need not make sense; what counts is how the target answers.
"""

import json
from collections.abc import Callable
from pathlib import Path

from specpipe.config.training import SelfDistillation
from specpipe.core.artifacts import digest_json, write_text
from specpipe.core.contracts import Sampling
from specpipe.core.errors import ConfigError
from specpipe.train.answers import generate
from specpipe.train.disk import explained
from specpipe.train.target import Target
from specpipe.train.text import in_template

Progress = Callable[[int, int], None]
MAX_TOKENS = 80  # of a prompt; one that has no end by then is dropped
SAMPLING = Sampling(temperature=1.0, top_k=50)  # top_p would sort the vocabulary at every token
LEAST_YIELD = 0.05  # of the attempts must be whole prompts
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


def invent_prompts(
    target: Target, how: SelfDistillation, seed: int, folder: Path, *, progress: Progress
) -> list[str]:
    """Return `how.invented_prompts` different prompts.

    They are cached in `folder`, a batch at a time, so that an interrupted run resumes. Raises
    ConfigError if the target hardly ever ends a prompt.
    """
    wanted = how.invented_prompts
    key = digest_json([target.digest, target.dtype, target.end_ids, how.batch_size, seed])
    file = folder / f"invented-{key[:16]}.jsonl"
    batches = _read(file)
    while len(found := _different(batches)) < wanted:
        attempts = how.batch_size * len(batches)
        if attempts >= 20 / LEAST_YIELD and len(found) < attempts * LEAST_YIELD:
            raise ConfigError(
                f"the target ended {len(found)} of {attempts} prompts that it was to make up",
                hint="give train.self_distillation.prompts instead of invented_prompts",
            )
        batches.append(_invent(target, how.batch_size, seed + len(batches)))
        with explained(file):
            write_text(file, "".join(json.dumps(batch) + "\n" for batch in batches))
        progress(min(len(_different(batches)), wanted), wanted)
    return found[:wanted]


def _invent(target: Target, count: int, seed: int) -> list[str]:
    before_user = in_template(
        target.tokenizer, [{"role": "user", "content": _MARK}], answer=False
    ).split(_MARK)[0]
    ids = target.tokenizer(before_user, add_special_tokens=False)["input_ids"]
    texts = generate(target, [ids] * count, MAX_TOKENS, SAMPLING, seed)
    whole = [text[:-1] for text in texts if text[-1] in target.end_ids]
    return [prompt for ids in whole if (prompt := target.tokenizer.decode(ids).strip())]


def _read(file: Path) -> list[list[str]]:
    if not file.is_file():
        return []
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise ConfigError(f"{file}: a damaged line", hint="delete the file") from error


def _different(batches: list[list[str]]) -> list[str]:
    return list(dict.fromkeys(prompt for batch in batches for prompt in batch))
