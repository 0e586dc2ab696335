"""The model cards of the drafters that scripts/train-heads trains."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Trained:
    """A training, as its card tells it."""

    kind: str
    report: Mapping[str, Any]
    calibration: Mapping[str, Any]  # of heads and ReDrafters
    weights: str  # sha256 of the file
    prompts: str  # sha256 of the file
    invented: int  # prompts that the target made up
    wall: float  # minutes
    cpu: float  # minutes


def card(trained: Trained) -> str:
    """Return the model card."""
    shown, facts = KINDS[trained.kind], trained.report["facts"]
    soft = " with the base model's distribution" if facts.get("soft_labels") else ""
    cores = os.cpu_count() or 1
    return CARD.format(
        trained=trained, facts=facts, files=shown.files,
        head=shown.head.format(facts=facts), loss=shown.loss.format(facts=facts, soft=soft),
        chains=chains_table(trained.report),
        accuracy=f"{shown.meaning}\n\n{heads_table(trained)}\n\n" if trained.calibration else "",
        share=trained.cpu / cores, cores=cores, processor=processor(),
        python=platform.python_version(), positions=facts["steps"] * facts["batch_tokens"],
    )  # fmt: skip


def heads_table(trained: Trained) -> str:
    """Return the accuracies of heads, or of the steps of a ReDrafter."""
    before, conditional = trained.report["before"], trained.calibration["conditional"]
    rows = [
        f"| {k} | {k + 2} | {before[f'head {k} top-1']:.3f} | "
        + " | ".join(f"{head['top'][n - 1]:.3f}" for n in (1, 2, 3, 5, 10))
        + f" | {conditional[k][0]:.3f} | {head['positions']} |"
        for k, head in enumerate(trained.report["heads"])
    ]
    return HEADS_TABLE + "\n".join(rows)


def chains_table(report: Mapping[str, Any]) -> str:
    """Return the acceptance by depth of chains, over all and for each category, and their length."""
    rows = {"all, untrained": report["before"], "all": report["after"], **report["categories"]}
    depths = [name for name in report["after"] if name.startswith("acceptance at depth ")]
    lines = [" | ".join([name, *(f"{values[depth]:.3f}" for depth in depths), f"{values['length']:.3f}"])
             for name, values in rows.items()]  # fmt: skip
    names = " | ".join(depth.removeprefix("acceptance at ") for depth in depths)
    head = f"| answers to prompts of | {names} | length |\n|{'---|' * (len(depths) + 2)}\n"
    return head + "\n".join(f"| {line} |" for line in lines)


def processor() -> str:
    """Return the name of the CPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


@dataclass(frozen=True)
class Kind:
    """One kind of drafter, and its part of the model card."""

    folder: str
    weights: str
    head: str
    meaning: str
    files: str
    loss: str
    others: tuple[str, ...] = ("calibration.json",)  # further files that are copied


BASE = """\
Its output layer is the base model's LM head, which is not in the file; the base model stays as it
is. The base model is the one that `scripts/fetch-model` makes: SmolLM2-135M-Instruct, dequantized
from Q4_1."""

RANKS = """\
 Top-n: the label is among the head's n
likeliest tokens. "After success": top-1 where every shallower head had the right token among its first ten."""

CALIBRATED = """\
 `calibration.json` holds, for every head, the
probability that its token 0 to 9 is right once every shallower head had the right token among its
first ten, measured on the hold-out."""

LOSS = """\
sum of {facts[head_loss_decay]}^k times the cross entropy of head k{soft}, over the \
{facts[loss_vocabulary]} most frequent tokens, the labels, and {facts[loss_samples]} others drawn \
per step, corrected for their number"""

KINDS = {
    "medusa": Kind(
        "smollm2-135m",
        "medusa_lm_head.safetensors",
        f"""\
# Medusa heads for SmolLM2-135M-Instruct

{{facts[num_heads]}} Medusa-1 heads (arXiv 2401.10774); residual layers a head: {{facts[num_layers]}}.
{BASE}

Use: `speculation: {{{{method: medusa, heads: model_configs/heads/smollm2-135m}}}}`.""",
        """\
Head k predicts the token k + 2 after the last one that it sees; head 0 predicts the one after the
token that the base model has just chosen itself."""
        + RANKS,
        """\
`medusa_lm_head.safetensors` and `config.json` have FasterDecoding's layout
(`{head}.{layer}.linear.weight` and `.bias`)."""
        + CALIBRATED,
        LOSS,
    ),
    "redrafter": Kind(
        "smollm2-135m_redrafter",
        "model.safetensors",
        f"""\
# A ReDrafter for SmolLM2-135M-Instruct

A recurrent drafter (arXiv 2403.09919); residual layers: {{facts[num_layers]}}, as wide as the base model.
{BASE}

Use: `speculation: {{{{method: redrafter, drafter: model_configs/heads/smollm2-135m_redrafter}}}}`, or with
prompt lookup: `{{{{method: hybrid, redrafter: {{{{drafter: ...}}}}}}}}`.""",
        """\
Head k is the drafter after k + 1 correct tokens, the first of which is the token that the base
model has just chosen itself."""
        + RANKS,
        """\
`model.safetensors` and `config.json` have Apple's names (`rnn_u`, `rnn_w`, `input_proj`,
`lm_head.{layer}.linear`), without the output layer `lm_head.{layers}`: conversion for
TensorRT-LLM adds the base model's."""
        + CALIBRATED,
        LOSS,
    ),
    "eagle3": Kind(
        "smollm2-135m_eagle3",
        "model.safetensors",
        """\
# An EAGLE-3 drafter for SmolLM2-135M-Instruct

One decoder layer (arXiv 2503.01840) that reads the inputs of layers {facts[target_layer_ids]}; tokens that
it drafts: {facts[draft_vocab_size]}. It uses the base model's embedding. The base model is the one that
`scripts/fetch-model` makes: SmolLM2-135M-Instruct, dequantized from Q4_1.

Use: `speculation: {{method: eagle3, draft: {{model: model_configs/heads/smollm2-135m_eagle3}}}}`, or with
prompt lookup: `{{method: hybrid, eagle3: {{model: ...}}}}`.""",
        "",
        """\
`model.safetensors` and `config.json` have the layout of speculators (`layers.0.*`, `fc`, `norm`,
`lm_head`, `d2t`, `t2d`), which vLLM reads.""",
        """\
sum of {facts[ttt_step_loss_decay]}^s over {facts[ttt_steps]} draft steps s of the {facts[loss_fn]} \
loss on the base model's distribution over the draft vocabulary; it has \
{facts[share of tokens in the draft vocabulary]} of the tokens of the hold-out""",
        (),
    ),
}

HEADS_TABLE = """\
| head | ahead | top-1 untrained | top-1 | top-2 | top-3 | top-5 | top-10 | after success | positions |
|---|---|---|---|---|---|---|---|---|---|
"""

CARD = """\
{head}

## How good it is

Measured on {facts[hold-out documents]} greedy answers of the base model that were not used for training.
Acceptance at depth n is the share of positions at which the first n tokens of a chain are right, after
the token that the base model has just chosen itself. Length adds them up, with that token.

{chains}

{accuracy}The hold-out prompts come from the same sources as the training prompts. Expect lower accuracy
on other kinds of prompts. Speed depends on the engine, the tree and the prompts, not only on accuracy. MT-Bench
and HumanEval were not used.

## How it was made

| | |
|---|---|
| prompts | `scripts/training-prompts`: templates over standard library functions and sources, pydoc topics, everyday subjects in six languages, arithmetic, and nouns, sentences and passages of the Brown corpus (Python {python}); {trained.invented} prompts of `model_configs/heads/invented_prompts.jsonl`, which the base model generated (Magpie, arXiv 2406.08464); sha256 of all {trained.prompts} |
| text | {facts[documents]} answers of the base model, greedy, from specpipe's CPU engine in bfloat16; {facts[learned tokens]} tokens |
| training | {facts[steps]} steps of {facts[batch_tokens]} positions ({facts[epochs]} epochs, {positions} positions), AdamW, peak rate {facts[learning_rate]}, seed {facts[seed]} |
| loss | {loss} |
| time | {trained.cpu:.0f} CPU minutes, that is {share:.0f} minutes of {cores} cores of {processor}; {trained.wall:.0f} minutes of wall-clock time; answers and hidden states are counted where no other training had left them |
| weights | float16, sha256 {trained.weights} |

To train it again, run `.venv/bin/python scripts/fetch-model`, then
`.venv/bin/python scripts/train-heads {trained.kind}`. The settings are in
`model_configs/smollm2-135m_train.yaml`. Another version of torch, CPU or number of threads rounds
differently; the base model's answers and the weights then differ in detail.

## Files

{files}

## Licence

Apache-2.0, as the base model. The training text is the base model's own output.
"""
