"""The reference: Hugging Face transformers, float32, plain greedy decoding."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from specpipe.checkpoint.gguf.judge import load_judge
from specpipe.checkpoint.quantized.foreign import find_foreign
from specpipe.checkpoint.quantized.widen import load_widened
from specpipe.checkpoint.source import open_source
from specpipe.checkpoint.tied import lacks_head
from specpipe.core.contracts import Logits


@dataclass(frozen=True)
class ReferenceAnswer:
    """What transformers answers, how sure it was at every token, and how long it took."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...]  # logit of the chosen token minus that of the runner-up
    first_s: float
    total_s: float


class Reference:
    """A loaded model.

    `end_ids` are those that `generate` of transformers stops at; (): it would stop at none.
    """

    def __init__(self, model: Path) -> None:
        """Load a checkpoint folder or a .gguf file in float32, with any quantization."""
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        if model.is_file():
            self._model: Any = load_judge(model)
        elif foreign := find_foreign(source := open_source(model)):
            self._model = load_widened(source, foreign)
        else:
            tie = {"tie_word_embeddings": True} if lacks_head(source) else {}
            self._model = AutoModelForCausalLM.from_pretrained(
                model, local_files_only=True, **tie
            ).float()
        if getattr(self._model.config, "attn_logit_softcapping", None):
            self._model.set_attn_implementation("eager")  # transformers 4's default drops the cap
        self._model.eval()
        self.end_ids = () if model.is_file() else _end_ids(model, self._model)

    @torch.no_grad()
    def logits(self, tokens: Sequence[int]) -> Logits:
        """Return what the model expects after every one of `tokens`: [n, V]."""
        found: Logits = self._model(input_ids=torch.tensor([list(tokens)])).logits[0].numpy()
        return found

    @torch.no_grad()
    def read(self, tokens: Sequence[int], block: int) -> Iterator[Logits]:
        """Yield what the model expects after every one of `tokens`, `block` of them at a time."""
        past = None
        for begin in range(0, len(tokens), block):
            part = torch.tensor([list(tokens[begin : begin + block])])
            result = self._model(input_ids=part, past_key_values=past, use_cache=True)
            past = result.past_key_values
            yield result.logits[0].numpy()

    @torch.no_grad()
    def generate(
        self, prompt: Sequence[int], max_tokens: int, end_ids: Sequence[int]
    ) -> ReferenceAnswer:
        """Decode greedily until an end token, part of the answer too, or `max_tokens`.

        It ends at the reference's own end tokens, so that wrong ones of a server are noticed; at
        `end_ids` where transformers has none; and at none if `end_ids` is empty.
        """
        ends = self.end_ids or end_ids if end_ids else ()
        began = time.perf_counter()
        first_s = 0.0
        step, past = torch.tensor([list(prompt)]), None
        tokens: list[int] = []
        margins: list[float] = []
        while len(tokens) < max_tokens and (not tokens or tokens[-1] not in ends):
            result = self._model(input_ids=step, past_key_values=past, use_cache=True)
            past = result.past_key_values
            best = torch.topk(result.logits[0, -1], 2)
            tokens.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
            first_s = first_s or time.perf_counter() - began
            step = torch.tensor([[tokens[-1]]])
        return ReferenceAnswer(tuple(tokens), tuple(margins), first_s, time.perf_counter() - began)


def _end_ids(folder: Path, model: Any) -> tuple[int, ...]:
    """Return what transformers made of the folder's files: our own reading is what is judged."""
    from transformers import GenerationConfig, PretrainedConfig

    if (folder / "generation_config.json").is_file():  # a widened model was not loaded from files
        named = GenerationConfig.from_pretrained(folder).eos_token_id
    else:  # transformers 4 fills in the default of a config class, which no file names
        config, _ = PretrainedConfig.get_config_dict(folder)
        parts = [config, *(part for part in config.values() if isinstance(part, dict))]
        given = any(part.get("eos_token_id") is not None for part in parts)
        named = model.generation_config.eos_token_id if given else None
    ids = named if isinstance(named, list) else [] if named is None else [named]
    return tuple(i for i in ids if i >= 0)
