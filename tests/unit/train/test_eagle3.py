"""An EAGLE-3 drafter from a config to files: what it learns, and how the engine drafts with it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from specpipe.checkpoint.convert import survey
from specpipe.checkpoint.eagle3 import open_eagle3
from specpipe.checkpoint.source import open_source
from specpipe.config.method_parts import Eagle3Draft
from specpipe.config.run_config import RunConfig, read_config
from specpipe.config.speculation import PLAIN, Eagle3, Speculation
from specpipe.config.training import Eagle3Training
from specpipe.core.artifacts import MANIFEST, Workspace
from specpipe.core.contracts import EMPTY, Sampling, Verdict, score
from specpipe.core.engines import LoadedEngine
from specpipe.core.errors import ConfigError
from specpipe.runtime.assembly import Runtime, make_proposer
from specpipe.runtime.batcher import finish
from specpipe.speculate.decode import Decoding, Limits, Step
from specpipe.train.eagle3 import chosen_layers, draft_vocabulary, drafter_config, train_eagle3
from specpipe.train.gather import gather_text, read_text
from specpipe.train.layer_net import Eagle3Net
from specpipe.train.layer_states import LayerStates, read_layer_states
from specpipe.train.layer_task import draft_loss
from specpipe.train.target import Target, load_target
from specpipe.train.text import Document
from tests.helpers.eagle3 import Eagle3Reference
from tests.helpers.models import CHATS, make_llama

SCHEDULE = {"epochs": 25, "batch_tokens": 256, "learning_rate": 0.01, "checkpoint_every": 60}
OPTIONS = {"target_layer_ids": [0, 1], "draft_vocab_size": 200, "schedule": SCHEDULE}
DRAFT = Eagle3Draft("unused")


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model with small random weights, whose answers repeat themselves now and then."""
    folder = tmp_path_factory.mktemp("calm") / "target"
    return make_llama(folder, seed=3, initializer_range=0.05, tie_word_embeddings=False)


@pytest.fixture
def answered(
    write_config: Callable[..., Path], calm: Path, workspace: Workspace
) -> Callable[..., RunConfig]:
    """Return a function that reads a run whose text is the target's own answers."""
    file = workspace.root / "prompts.jsonl"
    file.parent.mkdir()
    questions = [f"{question} {word}" for question, answer in CHATS for word in answer.split()[:4]]
    file.write_text("".join(json.dumps({"prompt": q}) + "\n" for q in questions))
    distillation = {"prompts": str(file), "max_tokens": 40, "batch_size": 24}

    def make(**schedule: object) -> RunConfig:
        options = {**OPTIONS, "schedule": {**SCHEDULE, **schedule}}
        common = {"sequence_length": 64, "hold_out": 0.2, "dtype": "float32"}
        train = {**common, "self_distillation": distillation, "eagle3": options}
        return read_config(write_config(target={"model": str(calm)}, train=train))

    return make


def states(target: Target, folder: Path, *lengths: int) -> LayerStates:
    documents = [Document(np.arange(3, 3 + n), np.arange(n) > 2) for n in lengths]
    return read_layer_states(target, documents, [0, 1], folder, progress=lambda d, t: None)


def test_states_are_those_of_transformers(target: Target, tmp_path: Path) -> None:
    for read in (states(target, tmp_path, 9, 5), states(target, tmp_path, 9, 5)):
        document = read.document(1, 2)
        found = target.model(document.tokens[None], output_hidden_states=True)
        expected = torch.cat([found.hidden_states[0][0], found.hidden_states[1][0]], -1)
        torch.testing.assert_close(document.inputs, expected, atol=1e-4, rtol=1e-4)
        logits = document.last @ target.output.T
        torch.testing.assert_close(logits, found.logits[0], atol=1e-4, rtol=1e-4)
        assert document.labels.tolist() == [[-1, -1], [-1, -1], [7, -1], [-1, -1], [-1, -1]]
    assert len(list(tmp_path.glob("layers-*.bin"))) == 1


@pytest.mark.parametrize("normed", [False, True])
def test_every_draft_step_computes_what_the_format_states(
    normed: bool, target: Target, tiny: Path, tmp_path: Path
) -> None:
    """Row t of step s is the draft after token t + 1 and the s tokens behind it."""
    options = Eagle3Training(norm_before_residual=normed)
    config = drafter_config(options, target, "t", [0, 1], 320)
    net = Eagle3Net(config, target.embedding, target.output, None, seed=1)
    for parameter in net.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    folder = tmp_path / "drafter"
    folder.mkdir()
    write(net, config, folder)
    reference = Eagle3Reference(folder, tiny)
    document = states(target, tmp_path, 9).document(0, 3)
    tokens = document.tokens.tolist()
    for step, logits in enumerate(net.steps(document, 3)):
        assert len(logits) == 8 - step
        for t in (0, 3, 7 - step):
            expected = reference.logits(tokens[: t + 2], tokens[t + 2 : t + 2 + step])
            torch.testing.assert_close(logits[t], expected, atol=2e-4, rtol=1e-4)


def write(net: Eagle3Net, config: dict, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({n: p.detach().contiguous() for n, p in net.named_parameters()},
              folder / "model.safetensors")  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def test_the_draft_vocabulary_has_the_frequent_tokens_of_answers(target: Target) -> None:
    marks = np.array([False, True, True, True, True, True])
    documents = [Document(np.array([9, 50, 50, 70, 70, 60]), marks)]
    assert draft_vocabulary(documents, target, 2).tolist() == [50, 70]
    assert draft_vocabulary(documents, target, 5).tolist() == [0, 1, 50, 60, 70]
    assert len(draft_vocabulary(documents, target, 1000)) == 320


def test_layers_that_the_target_lacks_are_refused() -> None:
    options = Eagle3Training(target_layer_ids=(1, 7))
    with pytest.raises(ConfigError, match=r"\[1, 7\]: the target's layers are 0 to 3"):
        chosen_layers(options, 4)


def test_losses_are_zero_for_the_targets_own_distribution() -> None:
    taught = torch.tensor([[2.0, 0.0, -1.0]])
    assert float(draft_loss(taught, taught, "kl_div")) == pytest.approx(0, abs=1e-6)
    flat = torch.zeros(1, 3)
    assert float(draft_loss(flat, taught, "ce")) == pytest.approx(np.log(3))
    entropy = float(-(taught.softmax(-1) * taught.log_softmax(-1)).sum())
    assert float(draft_loss(flat, taught, "kl_div")) == pytest.approx(np.log(3) - entropy)


def test_an_interrupted_training_ends_in_the_same_bytes(
    answered: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = answered(epochs=1, checkpoint_every=2)

    def stop(done: int, total: int) -> None:
        if (done, total) == (3, 4):  # steps; there are more prompts and documents
            raise KeyboardInterrupt

    whole = train_eagle3(config, Workspace(tmp_path / "whole", "t"))
    cut = Workspace(tmp_path / "cut", "t")
    with pytest.raises(KeyboardInterrupt):
        train_eagle3(config, cut, progress=stop)
    again = train_eagle3(config, cut)
    assert train_eagle3(config, cut).fresh
    for name in ("model.safetensors", "config.json", "report.json"):
        assert (whole.path / name).read_bytes() == (again.path / name).read_bytes()


def test_states_that_are_computed_in_every_step_teach_the_same(
    answered: Callable[..., RunConfig], tmp_path: Path
) -> None:
    stored = answered(epochs=1)
    streamed = replace(stored, train=replace(stored.train, hidden_states="on_the_fly"))
    one, other = (
        train_eagle3(config, Workspace(tmp_path / name, "t")).path
        for name, config in (("stored", stored), ("streamed", streamed))
    )
    files = [len(list(path.parent.glob("work/layers-*"))) for path in (one, other)]
    assert files == [2, 1], "the hold-out is on the disk"
    expected, found = (load_file(path / "model.safetensors") for path in (one, other))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0.05)


@pytest.mark.slow
def test_the_engine_accepts_as_often_as_the_trainer_reports(
    answered: Callable[..., RunConfig], calm: Path, make_engine, workspace: Workspace
) -> None:
    config = answered()
    path = train_eagle3(config, workspace).path
    assert sorted(f.name for f in path.iterdir()) == sorted(
        ["config.json", "model.safetensors", "report.html", "report.json", MANIFEST]
    )
    report = json.loads((path / "report.json").read_text())
    reported = [report["after"][f"acceptance at depth {depth}"] for depth in (1, 2, 3)]
    assert report["after"]["length"] > report["before"]["length"] + 0.3, report["after"]
    assert not open_eagle3(path).check("target", survey(open_source(calm), "float32"))
    tensors = load_file(path / "model.safetensors")
    assert tensors["t2d"].sum() == len(tensors["d2t"]) == 200
    engine = make_engine(calm, eagle3=path)
    work = workspace.engines / "train" / "work"
    target = load_target(calm, "float32", workspace.root / "digests.json")
    text = gather_text(
        read_text(config, target.tokenizer),
        config,
        target,
        work,
        notify=print,
        progress=lambda done, total: None,
    )
    found = measured(engine, text.held_out)
    np.testing.assert_allclose(found, reported, atol=0.02)
    require_lossless(engine, text.held_out)


def parted(document: Document) -> tuple[list[int], list[int]]:
    """Return prompt and answer."""
    prompt = document.tokens[~document.learned].tolist()
    return prompt, document.tokens[document.learned].tolist()


def measured(engine: LoadedEngine, documents: tuple[Document, ...]) -> list[float]:
    """Return the acceptance by depth of chains that are drafted after every token of answers."""
    runtime = Runtime({"target": engine}, Eagle3("eagle3", DRAFT, 3))
    batcher, drafts = runtime.batcher(), list[tuple[list[int], list[int]]]()
    for document in documents:
        stream = batcher.add(shadowed(runtime, *parted(document), drafts), adaptive=False)
        for _ in finish(batcher, stream):
            pass
    hits = [[a[: n + 1] == b[: n + 1] for a, b in drafts if len(b) > n] for n in range(3)]
    return [float(np.mean(each)) for each in hits]


def shadowed(
    runtime: Runtime,
    prompt: list[int],
    answer: list[int],
    drafts: list[tuple[list[int], list[int]]],
) -> Decoding:
    """Draft after every token of an answer, and score no draft."""
    proposer = make_proposer(runtime.speculation, runtime.facts)
    proposer.start(prompt, Sampling())
    for place, token in enumerate(answer):
        if place:
            draft = yield from proposer.propose(3)
            drafts.append((draft.tokens.tolist(), answer[place : place + 3]))
        scores = yield from score("target", [*prompt, *answer[:place]])
        proposer.observe(EMPTY, scores, Verdict((), token))
    yield Step((), 0, 0, "length")


def require_lossless(engine: LoadedEngine, documents: tuple[Document, ...]) -> None:
    """Compare a batch of speculative answers with plain decoding; tokens are accepted."""
    prompts = [parted(document)[0] for document in documents] * 2
    for sampling in (Sampling(), Sampling(top_k=0, temperature=0.7, seed=3)):
        plain, _ = answers(engine, prompts, PLAIN, sampling)
        for options in (
            Eagle3("eagle3", DRAFT, 3, draft_length="fixed"),
            Eagle3("eagle3", DRAFT, 12, "dynamic", 3, 4, draft_length="fixed"),
        ):
            found, accepted = answers(engine, prompts, options, sampling)
            assert found == plain
            assert accepted > 2 * len(prompts) or not sampling.greedy


def answers(
    engine: LoadedEngine, prompts: list[list[int]], options: Speculation, sampling: Sampling
) -> tuple[list[list[int]], int]:
    """Return the tokens of all prompts, decoded together, and the accepted draft tokens."""
    runtime = Runtime({"target": engine}, options)
    batcher, accepted = runtime.batcher(), 0
    streams = [runtime.add(batcher, runtime.decoding(p, sampling, Limits(30))) for p in prompts]
    found: dict[object, list[int]] = {stream: [] for stream in streams}
    while batcher.streams:
        for stream, event in batcher.round():
            assert isinstance(event, Step), event
            found[stream] += event.tokens
            accepted += event.accepted
    return list(found.values()), accepted
