"""The judges of scripts/compare-judges: how deep a chain is accepted, step by step.

Each returns the accepted tokens of every step that had a whole draft. The trainer's judge computes
the drafter with the net that is trained, in torch, over answers that others decoded.
"""

import http.client
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from safetensors.torch import load_file

from specpipe.checkpoint.medusa import WEIGHTS, open_heads
from specpipe.core.contracts import Sampling
from specpipe.core.drafters import TOKEN_MAP
from specpipe.runtime.assembly import Runtime
from specpipe.speculate.decode import Limits, Step
from specpipe.train.accuracy import label_ranks
from specpipe.train.layer_net import Eagle3Net
from specpipe.train.layer_states import read_layer_states
from specpipe.train.medusa import MedusaHeads
from specpipe.train.target import Target
from specpipe.train.text import Document, head_labels, spoken_after

TIMEOUT_S = 1800
Right = Callable[[Document], np.ndarray]  # -> [T, depth]: tokens 1 to d after t + 1 are right


@dataclass(frozen=True)
class ChainStep:
    """A step that verified a chain."""

    begin: int  # output tokens before it
    accepted: int


@dataclass(frozen=True)
class Judged:
    """What one judge found."""

    answers: tuple[tuple[int, ...], ...]  # the output tokens, prompt by prompt
    steps: tuple[tuple[ChainStep, ...], ...]


def whole_steps(judged: Judged, depth: int) -> list[ChainStep]:
    """Return the steps whose chain and next token end within the answer.

    Engines differ in what they count at the end: vLLM counts accepted tokens that it cuts off.
    """
    pairs = zip(judged.answers, judged.steps, strict=True)
    return [s for ids, steps in pairs for s in steps if s.begin + depth + 1 <= len(ids)]


def by_depth(accepted: Sequence[int], depth: int) -> list[float]:
    """Return the share of steps that accepted at least 1, 2, ... `depth` tokens."""
    return [sum(a >= d for a in accepted) / max(1, len(accepted)) for d in range(1, depth + 1)]


# --- the CPU engine -------------------------------------------------------------------------------


def judge_engine(deployment: Runtime, prompts: Sequence[Sequence[int]], tokens: int) -> Judged:
    """Decode every prompt greedily in this process, one at a time, without end tokens."""
    found = [list(_decode(deployment, prompt, tokens)) for prompt in prompts]
    answers = tuple(tuple(t for step in steps for t in step.tokens) for steps in found)
    return Judged(answers, tuple(tuple(_chains(steps)) for steps in found))


def _decode(deployment: Runtime, prompt: Sequence[int], tokens: int) -> Iterator[Step]:
    batcher = deployment.batcher(deployment.warm_up())
    deployment.add(batcher, deployment.decoding(prompt, Sampling(), Limits(tokens)))
    while True:
        for _, event in batcher.round():
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Step):
                yield event
                if event.finish is not None:
                    return


def _chains(steps: Sequence[Step]) -> Iterator[ChainStep]:
    begin = 0
    for step in steps:
        if step.drafted:
            yield ChainStep(begin, step.accepted)
        begin += len(step.tokens)


# --- vLLM -----------------------------------------------------------------------------------------


def judge_vllm(url: str, prompts: Sequence[Sequence[int]], tokens: int) -> Judged:
    """Send every prompt to a server with detailed metrics, one at a time, without end tokens."""
    (model,) = _call(url, "/v1/models")["data"]
    answers, steps = [], []
    for prompt in prompts:
        body = {"model": model["id"], "prompt": list(prompt), "max_tokens": tokens,
                "temperature": 0, "ignore_eos": True, "return_token_ids": True}  # fmt: skip
        found = _call(url, "/v1/completions", body)
        answers.append(tuple(found["choices"][0]["token_ids"]))
        steps.append(tuple(vllm_steps(found["metrics"]["speculative_decoding"])))
    return Judged(tuple(answers), tuple(steps))


def vllm_steps(metrics: Mapping[str, Any]) -> Iterator[ChainStep]:
    """Yield the steps of an answer: the first verifies what was drafted after the first token.

    A step without a draft has a place in neither list, so every step must have had one.
    """
    begin = 1
    for accepted in metrics["per_step_accepted"]:
        yield ChainStep(begin, accepted)
        begin += accepted + 1


def _call(url: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    place = urlsplit(url)
    made = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=TIMEOUT_S)
    with closing(made) as connection:
        text = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json"}
        connection.request("GET" if text is None else "POST", path, text, headers)
        response = connection.getresponse()
        content = response.read()
    if response.status != http.client.OK:
        raise SystemExit(f"{url} refused a request: {content.decode()[:500]}")
    return json.loads(content)


# --- the trainer ----------------------------------------------------------------------------------


def documents_of(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> list[Document]:
    """Return prompts with their answers, of which the answers are learned."""
    return [
        Document(np.array([*p, *a], np.int64), np.arange(len(p) + len(a)) >= len(p))
        for p, a in zip(prompts, answers, strict=True)
    ]


def walk(right: np.ndarray, prompt_length: int, answer: Sequence[int]) -> Iterator[ChainStep]:
    """Yield the steps that a chain would take through an answer; see `Right`."""
    begin = 1
    while begin < len(answer):
        accepted = int(right[prompt_length + begin - 2].sum())
        yield ChainStep(begin, accepted)
        begin += accepted + 1


def every_position(right: np.ndarray, document: Document) -> tuple[np.ndarray, np.ndarray]:
    """Return [depth] hits and [depth] positions: the trainer's definition.

    Of all positions of the answer with a text of d more tokens after the next one, those at which
    all d draft tokens are those of the text.
    """
    labelled = head_labels(document, right.shape[1]) >= 0
    return (right & labelled).sum(0), labelled.sum(0)


def medusa_right(target: Target, folder: Path, depth: int) -> Right:
    """Return the judge of Medusa heads; see `medusa_net`."""
    net = medusa_net(target, folder)
    if len(net.blocks) < depth:
        raise SystemExit(f"{folder}: needs at least {depth} heads")

    @torch.no_grad()
    def right(document: Document) -> np.ndarray:
        ids = torch.from_numpy(document.tokens)[None]
        hidden = target.hidden(ids, torch.ones_like(ids))[0].float()
        spoken = torch.from_numpy(spoken_after(document, depth))
        features = net.features(hidden, spoken)[:depth]
        ranks = [label_ranks(f, target.output, spoken[:, k + 1]) for k, f in enumerate(features)]
        return np.logical_and.accumulate(np.stack(ranks, 1) == 0, axis=1)

    return right


def medusa_net(target: Target, folder: Path) -> MedusaHeads:
    """Read Medusa heads in FasterDecoding's layout with a shared output layer."""
    found = open_heads(folder)
    if not found.shares_output:
        raise SystemExit(f"{folder}: needs heads that share the target's output layer")
    net = MedusaHeads(found.num_heads, found.num_layers, target.output, share_output=True)
    stored = load_file(folder / WEIGHTS)
    stored.pop(TOKEN_MAP, None)
    renamed = {f"blocks.{n.replace('.linear', '')}": t.float() for n, t in stored.items()}
    net.load_state_dict(renamed)
    return net


def eagle3_right(target: Target, folder: Path, depth: int, work: Path) -> Right:
    """Return the judge of an EAGLE-3 drafter in the layout of speculators."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stored = load_file(folder / "model.safetensors")
    if "transformer_layer_config" not in config or "lm_head.weight" not in stored:
        raise SystemExit(f"{folder}: needs the layout of speculators with an lm_head")
    maps = {name: stored.pop(name) for name in ("d2t", "t2d") if name in stored}
    count = len(stored["lm_head.weight"])
    ids = torch.arange(count) + maps.get("d2t", torch.zeros(count, dtype=torch.int64))
    net = Eagle3Net(config, target.embedding, target.output[:count], None, seed=0)
    net.load_state_dict({n: t.float() for n, t in stored.items() if "embed_tokens" not in n})
    layers = config["eagle_aux_hidden_state_layer_ids"]

    @torch.no_grad()
    def right(document: Document) -> np.ndarray:
        states = read_layer_states(target, [document], layers, work, progress=lambda a, b: None)
        taught = states.document(0, depth)
        hits = np.zeros((len(document), depth), bool)
        for step, logits in enumerate(net.steps(taught, depth)):
            drafted = ids[logits.argmax(-1)]
            hits[: len(logits), step] = (drafted == taught.labels[: len(logits), step]).numpy()
        return np.logical_and.accumulate(hits, axis=1)

    return right
