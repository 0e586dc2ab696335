"""The CPU engine on a tiny model: caches, trees, padding, quantisation, determinism."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest

from specpipe.artifacts import read_model_config
from specpipe.assembly import Slot, make_proposer
from specpipe.building import BuildRequest, Parallel
from specpipe.checkpoint.convert import write_checkpoint
from specpipe.checkpoint.source import open_source
from specpipe.contracts import EMPTY, ROOT, Draft, Proposer, Sampling, Verdict, chain
from specpipe.engine.openvino import runner
from specpipe.engine.openvino.backend import OpenVinoBackend, Precision
from specpipe.errors import ConfigError
from specpipe.methods import Lookahead, NoSpeculation
from specpipe.speculate.decode import Limits, Prefilled, Step, decode, only_steps

PROMPT = [5, 9, 30, 41, 7, 100, 33]


def scores(runner, draft: Draft) -> np.ndarray:
    return np.array(runner.score(draft).logits)


def fresh(engine, sequence: list[int]) -> np.ndarray:
    """Return the logits after `sequence`, computed from nothing."""
    runner = engine.runner()
    runner.start(sequence)
    return scores(runner, EMPTY)[0]


def test_a_chain_scores_like_one_token_at_a_time(tiny_engine) -> None:
    runner = tiny_engine.runner()
    runner.start(PROMPT)
    rows = scores(runner, chain([11, 12, 13]))
    for n in range(4):
        np.testing.assert_allclose(
            rows[n], fresh(tiny_engine, [*PROMPT, 11, 12, 13][: len(PROMPT) + n]), atol=1e-4
        )


def test_every_node_of_a_tree_sees_its_ancestors_and_nothing_else(tiny_engine) -> None:
    #  root -> 11 -> 13 -> 15
    #       -> 12 -> 14
    draft = Draft(np.array([11, 12, 13, 14, 15]), np.array([ROOT, ROOT, 0, 1, 2]))
    paths = {0: [], 1: [11], 2: [12], 3: [11, 13], 4: [12, 14], 5: [11, 13, 15]}
    runner = tiny_engine.runner()
    runner.start(PROMPT)
    rows = scores(runner, draft)
    for row, path in paths.items():
        np.testing.assert_allclose(rows[row], fresh(tiny_engine, PROMPT + path), atol=1e-4)


def test_only_the_accepted_path_stays_in_the_cache(tiny_engine) -> None:
    draft = Draft(np.array([11, 12, 13, 14]), np.array([ROOT, ROOT, 0, 1]))
    runner = tiny_engine.runner()
    runner.start(PROMPT)
    runner.score(draft)
    runner.commit(draft, Verdict((1, 3), 20))
    np.testing.assert_allclose(
        scores(runner, EMPTY)[0], fresh(tiny_engine, [*PROMPT, 12, 14, 20]), atol=1e-4
    )


def test_scoring_commits_nothing(tiny_engine) -> None:
    runner = tiny_engine.runner()
    runner.start(PROMPT)
    first = scores(runner, chain([50, 60]))
    runner.score(chain([1, 2, 3, 4]))
    np.testing.assert_array_equal(scores(runner, chain([50, 60])), first)


def test_follow_keeps_the_common_prefix_and_forgets_the_rest(tiny_engine) -> None:
    runner = tiny_engine.runner()
    runner.start(PROMPT)
    runner.score(EMPTY)
    runner.commit(EMPTY, Verdict((), 20))
    runner.score(EMPTY)
    runner.commit(EMPTY, Verdict((), 21))
    for sequence in ([*PROMPT, 20, 22], [*PROMPT, 20, 22, 23, 24], PROMPT[:3], [99]):
        runner.follow(sequence)
        np.testing.assert_allclose(
            scores(runner, EMPTY)[0], fresh(tiny_engine, sequence), atol=1e-4
        )


def test_lookahead_is_plain_decoding_up_to_the_very_end_of_the_sequence(tiny, make_engine) -> None:
    """Its window reaches beyond max_seq_len, where there are no positions any more."""
    engine = make_engine(tiny, max_seq_len=64)
    prompt, limits = PROMPT * 4, Limits(64 - 4 * len(PROMPT))

    def answer(proposer: Proposer) -> list[int]:
        steps = decode(engine.runner(), proposer, prompt, Sampling(), limits)
        return [token for step in steps for token in step.tokens]

    for size in ((4, 3, 4), (7, 7, 7), (1, 6, 2)):
        lookahead = make_proposer(Lookahead("lookahead", *size), {})
        assert answer(lookahead) == answer(make_proposer(NoSpeculation(), {}))


def test_runners_of_one_engine_do_not_disturb_each_other(tiny_engine) -> None:
    one, two = tiny_engine.runner(), tiny_engine.runner()
    one.start(PROMPT)
    two.start([8, 8, 8])
    for token in (20, 21, 22):
        one.score(EMPTY)
        one.commit(EMPTY, Verdict((), token))
        two.score(chain([4, 4]))
        two.commit(chain([4, 4]), Verdict((0,), token))
    np.testing.assert_allclose(
        scores(one, EMPTY)[0], fresh(tiny_engine, [*PROMPT, 20, 21, 22]), atol=1e-4
    )


def test_a_prompt_longer_than_a_chunk_is_read_in_pieces(tiny, make_engine) -> None:
    engine = make_engine(tiny, max_seq_len=700)
    sequence = np.random.default_rng(1).integers(3, engine.vocab_size, 600).tolist()
    whole = engine.runner()
    whole.start(sequence)
    grown = engine.runner()
    grown.start(sequence[:10])
    for end in range(40, 601, 40):
        grown.follow(sequence[:end])
        rows = scores(grown, EMPTY)
    np.testing.assert_allclose(scores(whole, EMPTY)[0], rows[0], atol=1e-3)


def test_a_prompt_read_between_the_steps_of_another_gives_the_same_answer(
    tiny, make_engine, monkeypatch
) -> None:
    engine = make_engine(tiny, max_seq_len=700)
    prompt = np.random.default_rng(1).integers(3, engine.vocab_size, 600).tolist()
    slots = [Slot({"target": engine.runner()}, NoSpeculation()) for _ in range(2)]
    limits = Limits(max_tokens=20)

    def alone(tokens: list[int]) -> list[Step]:
        return list(slots[0].decode(tokens, Sampling(), limits))

    events = [slots[0].events(prompt, Sampling(), limits, log_probs=True)]
    events.append(slots[1].events(PROMPT, Sampling(), limits))
    found: list[list[Step | Prefilled]] = [[], []]
    for mine, others in itertools.zip_longest(*events):
        found[0] += [mine] if mine else []
        found[1] += [others] if others else []
    steps = [list(only_steps(some)) for some in found]
    chunks = -(-(len(prompt) - runner.CHUNK) // runner.CHUNK)
    assert len(found[0]) - len(steps[0]) == chunks >= 2

    assert [s.tokens for s in steps[0]] == [s.tokens for s in alone(prompt)]
    assert [s.tokens for s in steps[1]] == [s.tokens for s in alone(PROMPT)]
    monkeypatch.setattr(runner, "CHUNK", 10_000)
    whole = list(slots[0].events(prompt, Sampling(), limits, log_probs=True))
    assert [s.tokens for s in only_steps(whole)] == [s.tokens for s in steps[0]]
    np.testing.assert_allclose(
        [s.log_probs for s in only_steps(whole)], [s.log_probs for s in steps[0]], atol=1e-4
    )


def test_hidden_states_give_the_logits(tiny_engine, tiny) -> None:
    from safetensors.torch import load_file

    table = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"].float().numpy()
    runner = tiny_engine.runner()
    runner.start(PROMPT)
    result = runner.score(chain([11]))
    assert result.hidden is not None and result.hidden.shape == (2, 64)
    np.testing.assert_allclose(result.hidden @ table.T, result.logits, atol=1e-3)


def test_bfloat16_stays_near_float32_with_and_without_padded_steps(
    tiny, tiny_engine, make_engine
) -> None:
    engine = make_engine(tiny, "bfloat16")
    expected = fresh(tiny_engine, PROMPT)
    for width in (0, 8):
        runner = engine.runner(width)
        runner.start(PROMPT)
        rows = scores(runner, EMPTY)
        assert rows.shape == (1, engine.vocab_size)
        assert np.abs(rows[0] - expected).mean() < 0.05 * np.abs(expected).mean() + 0.2


@pytest.mark.parametrize(("quantization", "bound"), [("int8", 0.1), ("int4", 0.6)])
def test_quantised_weights_stay_near_float32(
    quantization: str, bound: float, tiny, tiny_engine, make_engine
) -> None:
    engine = make_engine(tiny, "float32", quantization)
    expected, got = fresh(tiny_engine, PROMPT), fresh(engine, PROMPT)
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert 0 < error < bound


def build(tiny: Path, folder: Path) -> Path:
    checkpoint, engine = folder / "checkpoint", folder / "engine"
    checkpoint.mkdir(parents=True)
    engine.mkdir()
    write_checkpoint(open_source(tiny), checkpoint, "float32", lambda done, total: None)
    model = read_model_config(checkpoint)
    request = BuildRequest("target", model, "float32", "none", "none", 0, 1, 100, 200)
    OpenVinoBackend().build(request, checkpoint, engine)
    return engine


def test_two_builds_give_equal_bytes(tiny: Path, tmp_path: Path) -> None:
    first, second = build(tiny, tmp_path / "1"), build(tiny, tmp_path / "2")
    for name in ("openvino_model.xml", "openvino_model.bin", "config.json", "engine.json"):
        digests = {hashlib.sha256((e / name).read_bytes()).hexdigest() for e in (first, second)}
        assert len(digests) == 1, name


def test_a_damaged_engine_is_refused(tiny: Path, tmp_path: Path) -> None:
    engine = build(tiny, tmp_path)
    (engine / "openvino_model.xml").write_text("<net")
    with pytest.raises(ConfigError, match="the engine cannot be loaded"):
        OpenVinoBackend().load(engine)


def test_a_truncated_checkpoint_is_refused(tiny: Path, tmp_path: Path) -> None:
    build(tiny, tmp_path)
    file = tmp_path / "checkpoint/rank0.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    model = read_model_config(tmp_path / "checkpoint")
    request = BuildRequest("target", model, "float32", "none", "none", 0, 1, 100, 200)
    with pytest.raises(ConfigError, match="checkpoint file is incomplete"):
        OpenVinoBackend().build(request, tmp_path / "checkpoint", tmp_path / "engine")


def request_for(model, **changes: object) -> BuildRequest:
    values = {
        "role": "target", "model": model, "dtype": "float32", "quantization": "none",
        "method": "none", "draft_nodes": 0, "max_batch_size": 1, "max_input_len": 10,
        "max_seq_len": 20, **changes,
    }  # fmt: skip
    return BuildRequest(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpu": "H100-SXM"}, "runs on the CPU"),
        ({"parallel": Parallel(2)}, "one rank"),
        ({"dtype": "float16"}, "float32 and bfloat16"),
    ],
)
def test_what_the_cpu_cannot_do_is_refused(
    changes: dict, words: str, tiny: Path, tmp_path: Path
) -> None:
    build(tiny, tmp_path)
    model = read_model_config(tmp_path / "checkpoint")
    assert OpenVinoBackend().check(request_for(model)) == []
    (rejection,) = OpenVinoBackend().check(request_for(model, **changes))
    assert words in rejection.reason


def test_int4_is_refused_where_groups_do_not_divide(tiny: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    build(tiny, tmp_path)
    model = replace(read_model_config(tmp_path / "checkpoint"), hidden_size=100)
    (rejection,) = OpenVinoBackend().check(request_for(model, quantization="int4"))
    assert "multiples of 64" in rejection.reason


def test_quantised_engines_compute_in_float32_and_round_only_if_allowed() -> None:
    assert Precision("bfloat16", "none").bfloat16
    assert not Precision("bfloat16", "int8").bfloat16
    assert Precision("float32", "int8").properties()["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "0"
    assert Precision("bfloat16", "int8").properties()["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "32"
