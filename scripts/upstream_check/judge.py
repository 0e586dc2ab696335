"""Compare what TensorRT-LLM's network computed with transformers in float32."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch.nn.functional import linear, log_softmax, silu

Weights = Mapping[str, torch.Tensor]
_LIKELIEST = 50  # tokens that TensorRT-LLM's search over beams leaves
_FAR = -50000.0  # the score of the others
_CLOSE = 0.05  # between two log-probabilities


@dataclass
class Verdict:
    """What was compared, in words, and whether all of it agrees."""

    least: float  # correlation of logits
    good: bool = True
    words: list[str] = field(default_factory=list)

    def compare(self, name: str, got: Any, wanted: Any) -> None:
        """Compare logits; padding of the vocabulary is left out."""
        got = got.reshape(-1, got.shape[-1])[:, : wanted.shape[-1]]
        wanted = np.asarray(wanted).reshape(got.shape)
        correlation = float(np.corrcoef(got.ravel(), wanted.ravel())[0, 1])
        same = float((got.argmax(-1) == wanted.argmax(-1)).mean())
        self.good &= correlation >= self.least
        self.words.append(f"{name}: correlation {correlation:.6f}, {same:.0%} same first tokens")

    def require(self, good: bool, words: str) -> None:
        """Add a comparison of another kind."""
        self.good &= good
        self.words.append(words)


@torch.no_grad()
def judge(
    reference: Path, tokens: list[int], found: Path, drafter: Path | None, least: float
) -> Verdict:
    """Compare the outputs `found` of the last rank with those of the model `reference`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).eval()
    whole = model(torch.tensor([tokens]), output_hidden_states=True)
    logits, hidden = whole.logits[0, -1], whole.hidden_states[-1][0]
    outputs, verdict = np.load(found), Verdict(least)
    if "logits" in outputs:
        verdict.compare("logits", outputs["logits"][:1], logits[None].numpy())
    weights = {} if drafter is None else _read(drafter)
    if "medusa_logits" in outputs:
        verdict.compare("heads", outputs["medusa_logits"], _medusa(weights, hidden[-1]).numpy())
    if "next_draft_tokens" in outputs and "rnn_u.weight" in weights:
        _judge_beams(verdict, outputs, weights, model, hidden[-1])
    if "eagle0" in outputs:
        _judge_eagle(verdict, outputs, weights, model, hidden, int(logits.argmax()))
    if not verdict.words:
        verdict.require(False, f"nothing to compare: {', '.join(outputs.files)}")
    return verdict


def _read(folder: Path) -> Weights:
    (file,) = folder.glob("*.safetensors")
    return {name: tensor.float() for name, tensor in load_file(file).items()}


def _medusa(weights: Weights, hidden: torch.Tensor) -> torch.Tensor:
    """Return the logits of every head [heads, V] (2401.10774, section 2.1.1)."""
    rows = []
    for head in range(sum(name.endswith("0.linear.bias") for name in weights)):
        at = f"{head}.0.linear"
        x = hidden + silu(linear(hidden, weights[f"{at}.weight"], weights[f"{at}.bias"]))
        rows.append(weights[f"{head}.1.weight"] @ x)
    return torch.stack(rows)


def _judge_beams(
    verdict: Verdict, outputs: Any, weights: Weights, model: Any, hidden: torch.Tensor
) -> None:
    """Search the beams of Apple's ReDrafter, and compare beams and scores of first tokens."""
    beams = outputs["next_draft_tokens"][0].astype(int).tolist()
    table, first = model.get_input_embeddings().weight, beams[0][0]
    paths, states, scores = [[first]], [torch.zeros_like(hidden)], torch.zeros(1)
    begin: torch.Tensor | None = None
    for _ in range(len(beams[0]) - 1):
        states = [_read_token(weights, table[p[-1]], s) for p, s in zip(paths, states, strict=True)]
        odds = _odds(weights, hidden, torch.stack(states))
        begin = odds[0] if begin is None else begin
        scores, flat = (odds + scores[:, None]).reshape(-1).topk(len(beams))
        parents, tokens = (flat // odds.shape[1]).tolist(), (flat % odds.shape[1]).tolist()
        states = [states[parent] for parent in parents]
        paths = [[*paths[p], token] for p, token in zip(parents, tokens, strict=True)]
    assert begin is not None
    same = sum(beam in paths for beam in beams)
    got = log_softmax(torch.from_numpy(outputs["next_draft_probs"][0, 0, 0]), -1)[: len(begin)]
    kept = (begin > -1000) & (got > -1000)
    apart = float((begin - got)[kept].abs().max())
    words = f"beams: {same} of {len(beams)} alike, log-probabilities within {apart:.4f}"
    verdict.require(same == len(beams) and apart < _CLOSE, words)


def _read_token(weights: Weights, embedded: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    kept = linear(state, weights["rnn_u.weight"], weights["rnn_u.bias"])
    return silu(weights["rnn_w.weight"] @ embedded + kept)


def _odds(weights: Weights, hidden: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities [beams, V] among the likeliest tokens."""
    x = torch.cat([hidden.expand(len(states), -1), states], -1)
    layers = sum(name.endswith("linear.weight") for name in weights)
    for layer in range(layers):
        at = f"lm_head.{layer}.linear"
        x = x + silu(linear(x, weights[f"{at}.weight"], weights[f"{at}.bias"]))
    logits = x @ weights[f"lm_head.{layers}.weight"].T
    least = logits.topk(min(_LIKELIEST, logits.shape[-1])).values[:, -1:]
    return log_softmax(logits.masked_fill(logits < least, _FAR), -1)


def _judge_eagle(
    verdict: Verdict, outputs: Any, weights: Weights, model: Any, hidden: torch.Tensor, token: int
) -> None:
    """Run the drafter as one layer of the target's class, without its first norm."""
    ids = torch.tensor(outputs["eagle0_ids"].astype(int))
    x = torch.cat([weights["embed_tokens.weight"][ids], hidden], -1)
    x = linear(x, weights["fc.weight"], weights["fc.bias"])
    layer, at = model.model.layers[0], "layers.0."
    layer.input_layernorm = torch.nn.Identity()
    own = {n.removeprefix(at): t for n, t in weights.items() if n.startswith(at)}
    layer.load_state_dict(own, strict=False)
    positions = torch.arange(len(ids))[None]
    mask = torch.full((len(ids), len(ids)), float("-inf")).triu(1)[None, None]
    rotary = model.model.rotary_emb(x[None], positions)
    y = layer(
        x[None], attention_mask=mask, position_ids=positions, position_embeddings=rotary
    )  # fmt: skip
    y = y[0] if isinstance(y, tuple) else y
    last = model.lm_head(y.reshape(len(ids), -1)[-1:])
    verdict.compare("drafter", outputs["eagle0"], last.numpy())
    verdict.require(int(ids[-1]) == token, "accepts the target's token")
