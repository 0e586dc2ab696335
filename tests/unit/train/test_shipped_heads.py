"""The heads and the drafter that come with the repository: their layout, and that they do guess."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from specpipe.checkpoint.eagle3_format import read_eagle3_config
from specpipe.checkpoint.redrafter import open_redrafter
from specpipe.config.speculation import ReDrafter
from specpipe.core.prompts import DEFAULT, read_prompts
from specpipe.train.accuracy import label_ranks
from specpipe.train.layer_net import Eagle3Net
from specpipe.train.layer_states import read_layer_states
from specpipe.train.medusa import MedusaHeads
from specpipe.train.redrafter import RecurrentNet, apples_name
from specpipe.train.target import Target, load_target
from specpipe.train.text import Document, head_labels, in_template, next_labels
from tests.helpers.models import SMOLLM2

HEADS = Path(__file__).parents[3] / "model_configs/heads/smollm2-135m"
DRAFTER = HEADS.with_name("smollm2-135m_redrafter")
EAGLE3 = HEADS.with_name("smollm2-135m_eagle3")
LIMIT = 8 * 2**20
NEW_TOKENS = 32


@pytest.fixture(scope="module")
def facts() -> dict[str, object]:
    """Return the heads' config.json."""
    return json.loads((HEADS / "config.json").read_text())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """Return the real model in float32."""
    return load_target(SMOLLM2, "float32", tmp_path_factory.mktemp("memory") / "digests.json")


@pytest.fixture(scope="module")
def answers(model: Target) -> list[Document]:
    """Return four prompts with the model's greedy answers, decoded together."""
    tokenizer = model.tokenizer
    tokenizer.padding_side = "left"
    texts = [
        in_template(tokenizer, [{"role": "user", "content": prompt}], answer=True)
        for prompt in read_prompts(DEFAULT)[:4]
    ]
    batch = tokenizer(texts, add_special_tokens=False, return_tensors="pt", padding=True)
    found = model.model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False).numpy()
    began, mask = batch["input_ids"].shape[1], batch["attention_mask"].numpy() == 1
    return [
        Document(
            np.concatenate([row[:began][real], row[began:]]),
            np.arange(real.sum() + NEW_TOKENS) >= real.sum(),
        )
        for row, real in zip(found, mask, strict=True)
    ]


def assert_ranks_all_tokens(ids: torch.Tensor) -> None:
    """Check a token map: every token once, in another order than that of the ids."""
    assert ids.sort().values.tolist() == list(range(49152)) != ids.tolist()


def test_they_fit_and_have_fasterdecodings_layout(facts) -> None:
    assert sum(f.stat().st_size for f in HEADS.iterdir()) < LIMIT
    weights = load_file(HEADS / "medusa_lm_head.safetensors")
    assert_ranks_all_tokens(weights.pop("token_map"))
    heads, layers = facts["medusa_num_heads"], facts["medusa_num_layers"]
    assert set(weights) == {
        f"{h}.{i}.linear.{part}"
        for h in range(heads) for i in range(layers) for part in ("weight", "bias")
    }  # fmt: skip
    assert weights["0.0.linear.weight"].shape == (facts["hidden_size"],) * 2
    assert all(t.dtype == torch.float16 and t.isfinite().all() for t in weights.values())


def test_their_calibration_has_a_row_of_probabilities_a_head(facts) -> None:
    calibration = json.loads((HEADS / "calibration.json").read_text())
    conditional = np.array(calibration["conditional"])
    assert conditional.shape == (facts["medusa_num_heads"], 10)
    assert (conditional >= 0).all() and (conditional.sum(1) <= 1 + 1e-9).all()
    assert min(calibration["samples"]) >= 1000


def test_the_drafter_fits_and_shares_its_output_layer() -> None:
    assert sum(f.stat().st_size for f in DRAFTER.iterdir()) < LIMIT
    found = open_redrafter(DRAFTER, ReDrafter("redrafter", ""), "1.2.1")
    assert found.shares_output and (found.hidden_size, found.vocab_size) == (576, 49152)
    assert found.accuracy is not None and found.accuracy[0][0] > 0.4
    weights = load_file(DRAFTER / "model.safetensors")
    assert_ranks_all_tokens(weights.pop("token_map"))
    assert all(t.dtype == torch.float16 and t.isfinite().all() for t in weights.values())


def test_the_eagle3_drafter_has_the_layout_of_speculators_and_names_its_target() -> None:
    assert sum(f.stat().st_size for f in EAGLE3.iterdir()) < 2 * LIMIT
    found = read_eagle3_config(EAGLE3, "float32")
    assert found.speculators and found.norm_before_residual is False and not found.unknown
    assert (found.draft_vocab_size, found.layer_ids) == (4096, (2, 15, 27))
    config = json.loads((EAGLE3 / "config.json").read_text())
    name = config["speculators_config"]["verifier"]["name_or_path"]
    assert name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    weights = load_file(EAGLE3 / "model.safetensors")
    maps = weights.pop("d2t"), weights.pop("t2d")
    assert torch.equal((torch.arange(4096) + maps[0]), maps[1].nonzero()[:, 0])
    assert all(t.dtype == torch.float16 and t.isfinite().all() for t in weights.values())


@pytest.mark.model
def test_the_eagle3_drafter_guesses_what_the_model_says_next(
    model: Target, answers: list[Document], tmp_path: Path
) -> None:
    config = json.loads((EAGLE3 / "config.json").read_text())
    weights = load_file(EAGLE3 / "model.safetensors")
    ids = torch.arange(4096) + weights.pop("d2t")
    del weights["t2d"]
    net = Eagle3Net(config, model.embedding, model.output[ids], None, seed=0)
    net.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    layers = config["eagle_aux_hidden_state_layer_ids"]
    states = read_layer_states(model, answers, layers, tmp_path, progress=lambda a, b: None)
    right, positions = 0, 0
    for number in range(len(answers)):
        document = states.document(number, 1)
        (logits,) = net.steps(document, 1)
        labels = document.labels[: len(logits), 0]
        right += int((ids[logits.argmax(-1)] == labels).sum())
        positions += int((labels >= 0).sum())
    assert positions > 100 and right > 0.3 * positions


@pytest.mark.model
def test_the_drafter_guesses_what_the_model_says_next_better_than_head_0(
    facts, model: Target, answers: list[Document]
) -> None:
    """It sees the token before its guess, which a head does not."""
    drafter = RecurrentNet(1, 2, model.embedding, seed=0)
    weights = load_file(DRAFTER / "model.safetensors")
    with torch.no_grad():
        for name, parameter in drafter.named_parameters():
            parameter.copy_(weights[apples_name(name)])
    heads = _load(facts, model)
    right = {net: sum(_hits(net, model, answer) for answer in answers) for net in (heads, drafter)}
    assert right[drafter] > 1.2 * right[heads] > 0


@pytest.mark.model
def test_head_0_guesses_what_the_model_says_next_better_than_the_lm_head_does(
    facts, model: Target, answers: list[Document]
) -> None:
    trained = _load(facts, model)
    untrained = MedusaHeads(1, 1, model.output, share_output=True)
    positions, right, by_chance = 0, 0, 0
    for document in answers:
        positions += int((head_labels(document, 1) >= 0).sum())
        right += _hits(trained, model, document)
        by_chance += _hits(untrained, model, document)
    assert positions > 100
    assert right > 0.2 * positions and right > 5 * by_chance


def _hits(net: MedusaHeads | RecurrentNet, target: Target, document: Document) -> int:
    ids = torch.from_numpy(document.tokens)[None]
    following = torch.from_numpy(next_labels(document))[:, None]
    with torch.no_grad():
        features = net.features(target.hidden(ids, torch.ones_like(ids))[0], following)[0]
    labels = torch.from_numpy(head_labels(document, 1))[:, 0]
    return int((label_ranks(features, target.output, labels) == 0).sum())


def _load(facts, target: Target) -> MedusaHeads:
    heads = MedusaHeads(
        facts["medusa_num_heads"], facts["medusa_num_layers"], target.output, share_output=True
    )
    weights = load_file(HEADS / "medusa_lm_head.safetensors")
    with torch.no_grad():
        for h, blocks in enumerate(heads.blocks):
            for i, block in enumerate(blocks):
                block.weight.copy_(weights[f"{h}.{i}.linear.weight"])
                block.bias.copy_(weights[f"{h}.{i}.linear.bias"])
    return heads
