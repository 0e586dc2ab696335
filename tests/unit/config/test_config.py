"""YAML in, records out; every refusal has file:line, the value seen, and a suggestion."""

from pathlib import Path

import pytest

from specpipe.config.files import find_file
from specpipe.config.run_config import read_config
from specpipe.config.speculation import (
    DraftModel,
    Hybrid,
    Medusa,
    NoSpeculation,
    PromptLookup,
    ReDrafter,
)
from specpipe.config.upstream_methods import Eagle
from specpipe.core.errors import ConfigError

GOOD = """\
name: demo
target:
  model: some/where
speculation:
  method: prompt_lookup
  num_draft_tokens: 5
engine:
  backend: openvino
  dtype: bfloat16
  max_input_len: 100
  max_seq_len: 200
validate:
  gates:
    exact_match: 1
"""


def read(tmp_path: Path, text: str):
    path = tmp_path / "demo.yaml"
    path.write_text(text)
    return read_config(path)


def test_reads_every_section(tmp_path: Path) -> None:
    config = read(tmp_path, GOOD)
    assert config.name == "demo" and config.target.model == "some/where"
    assert config.speculation == PromptLookup("prompt_lookup", 5)
    assert config.engine.dtype == "bfloat16" and config.engine.quantization == "none"
    assert config.validate.gates == {"exact_match": 1.0}
    assert config.models() == {"target": "some/where"}


EAGLE = GOOD.replace("method: prompt_lookup", "method: eagle\n  drafter: some/drafter")


def test_eagles_tree_is_grown_and_its_sizes_are_the_trees(tmp_path: Path) -> None:
    options = read(tmp_path, EAGLE).speculation
    assert isinstance(options, Eagle) and len(options.tree) == options.num_draft_tokens == 5
    assert options.num_eagle_layers == max(map(len, options.tree)) <= 4
    listed = read(tmp_path, EAGLE.replace("num_draft_tokens: 5", "tree: [[0, 0], [1]]")).speculation
    assert isinstance(listed, Eagle) and listed.tree == ((0,), (1,), (0, 0))
    assert (listed.num_draft_tokens, listed.num_eagle_layers) == (3, 2)


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ("tree: [[0, 0]]\n  num_eagle_layers: 3", "is 3, but speculation.tree has 2 levels"),
        ("tree: [[0, 0]]\n  num_draft_tokens: 3", "is 3, but speculation.tree has 2 nodes"),
        ("tree: [[0, 0], [1, 0]]\n  max_non_leaves_per_layer: 1", "has 2 nodes with children"),
        ("num_draft_tokens: 257", "must be at most 256"),
        ("tree: [[0, 10]]", "rank must be from 0 to 9"),
    ],
)
def test_sizes_that_an_eagle_engine_cannot_have_are_refused(
    new: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, EAGLE.replace("num_draft_tokens: 5", new))


def test_speculation_may_be_left_out(tmp_path: Path) -> None:
    text = "name: a\ntarget: {model: b}\nengine: {backend: openvino}\n"
    assert read(tmp_path, text).speculation == NoSpeculation()


def test_a_draft_model_is_a_second_model(tmp_path: Path) -> None:
    text = GOOD.replace(
        "  method: prompt_lookup\n", "  method: draft_model\n  draft: {model: small}\n"
    )
    config = read(tmp_path, text)
    assert isinstance(config.speculation, DraftModel)
    assert config.models() == {"target": "some/where", "draft": "small"}


LOOKAHEAD = GOOD.replace(
    "  method: prompt_lookup\n  num_draft_tokens: 5\n",
    "  method: lookahead\n  window_size: {}\n  ngram_size: {}\n  verification_set_size: {}\n",
)


@pytest.mark.parametrize(
    ("size", "drafted"),
    [
        ((4, 3, 4), 15), ((4, 4, 4), 23), ((5, 5, 5), 39), ((7, 7, 7), 83), ((8, 8, 8), 111),
        ((2, 2, 1), 2), ((1, 1, 0), 0), ((1, 2, 0), 0), ((3, 3, 0), 5),
    ],
)  # fmt: skip
def test_lookahead_scores_as_many_tokens_as_tensorrt_llm_demands(
    size: tuple[int, int, int], drafted: int, tmp_path: Path
) -> None:
    assert read(tmp_path, LOOKAHEAD.format(*size)).speculation.num_draft_tokens == drafted


@pytest.mark.parametrize(
    ("size", "line", "words"),
    [
        ((2, 1, 0), 7, "is 1, which is plain decoding"),
        ((1, 1, 1), 7, "window_size 1 and verification_set_size 0 only, not with 1 and 1"),
        ((0, 2, 1), 6, "'speculation.window_size' is 0: must be at least 1"),
        ((1, 0, 0), 7, "'speculation.ngram_size' is 0: must be at least 1"),
        ((1, 2, -1), 8, "'speculation.verification_set_size' is -1: must be at least 0"),
        ((20, 10, 9), 4, "'speculation' drafts 260 tokens a step: must be below"),
    ],
)
def test_illegal_lookahead_sizes_are_refused_with_their_line(
    size: tuple[int, int, int], line: int, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, LOOKAHEAD.format(*size))
    assert words in str(caught.value) and f"demo.yaml:{line}: " in str(caught.value)


HYBRID = GOOD.replace("prompt_lookup\n", "hybrid\n  draft: {model: small}\n")


def test_the_draft_of_a_hybrid_is_a_model_of_the_run(tmp_path: Path) -> None:
    assert read(tmp_path, HYBRID).models() == {"target": "some/where", "draft": "small"}


def test_a_hybrid_without_a_second_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"demo.yaml:4: method hybrid needs a second source"):
        read(tmp_path, HYBRID.replace("  draft: {model: small}\n", ""))


def test_a_least_confidence_without_a_draft_model_is_refused(tmp_path: Path) -> None:
    text = HYBRID.replace("  num_draft", "  min_confidence: 0.7\n  num_draft")
    options = read(tmp_path, text).speculation
    assert isinstance(options, Hybrid) and options.min_confidence == 0.7
    with pytest.raises(ConfigError, match=r"demo.yaml:\d: .* no effect without speculation.draft"):
        read(tmp_path, text.replace("draft: {model: small}", "heads: some/heads"))


MEDUSA = GOOD.replace(
    "  method: prompt_lookup\n  num_draft_tokens: 5\n",
    "  method: medusa\n  heads: some/heads\n  tree: {}\n",
)
REDRAFTER = GOOD.replace(
    "method: prompt_lookup\n  num_draft_tokens: 5", "method: redrafter\n  {}: some/drafter"
)


def with_lines(text: str, *lines: str) -> str:
    """Return `text` with more lines in its section `speculation`."""
    return text.replace("engine:", "".join(f"  {line}\n" for line in lines) + "engine:")


FORMER = [  # a former spelling, its present spelling, and what the remark on the former shows
    (REDRAFTER.format("heads"), REDRAFTER.format("drafter"),
     "demo.yaml:6: 'speculation.heads' is now 'speculation.drafter'"),
    (EAGLE.replace("drafter:", "heads:"), EAGLE,
     "demo.yaml:6: 'speculation.heads' is now 'speculation.drafter'"),
    (HYBRID.replace("draft: {model: small}", "redrafter: {heads: d}"),
     HYBRID.replace("draft: {model: small}", "redrafter: {drafter: d}"),
     "demo.yaml:6: 'speculation.redrafter.heads' is now 'speculation.redrafter.drafter'"),
    (with_lines(HYBRID, "draft_length: confidence"),
     with_lines(HYBRID, "draft_length: adaptive", "min_confidence: 0.4"),
     "'speculation.draft_length: confidence' is now "
     "'speculation.draft_length: adaptive, speculation.min_confidence: 0.4'"),
    (with_lines(HYBRID, "min_confidence: 0.7", "draft_length: confidence"),
     with_lines(HYBRID, "draft_length: adaptive", "min_confidence: 0.7"),
     "'speculation.draft_length: confidence' is now"),
    (with_lines(MEDUSA.format("auto"), "guess_vocabulary: 64"),
     with_lines(MEDUSA.format("auto"), "draft_vocab_size: 64"),
     "'speculation.guess_vocabulary' is now 'speculation.draft_vocab_size'"),
    (GOOD + "    time_per_token_ms: 9\n", GOOD + "    tpot_ms: 9\n",
     "'validate.gates.time_per_token_ms' is now 'validate.gates.tpot_ms'"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "remark"), FORMER)
def test_a_former_spelling_is_read_with_a_remark(
    tmp_path: Path, old: str, new: str, remark: str
) -> None:
    former, present = read(tmp_path, old), read(tmp_path, new)
    assert former == present and not present.remarks
    assert len(former.remarks) == 1 and remark in former.remarks[0]


def test_a_key_may_not_be_given_under_both_names(tmp_path: Path) -> None:
    both = REDRAFTER.format("heads: other\n  drafter")
    with pytest.raises(ConfigError, match="former name of 'speculation.drafter'"):
        read(tmp_path, both)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("  model:", "  modle:", 3, "unknown key 'target.modle'; did you mean 'model'?"),
        ("name: demo", "name: 5", 1, "'name' is '5': must be text; put it in quotes"),
        ("name: demo", "name: a b", 1, "'name' is 'a b': must be at most 100 letters, digits"),
        ("name: demo", "nmae: demo", 1, "unknown key 'nmae'; did you mean 'name'?"),
        ("dtype: bfloat16", "dtype: bf16", 9, "'engine.dtype' is 'bf16'; did you mean 'bfloat16'?"),
        (
            "backend: openvino",
            "backend: sglang",
            8,
            "'engine.backend' is 'sglang'\n  hint: known: ",
        ),
        ("backend: openvino", "backend: tensort", 8, "did you mean 'tensorrt'?"),
        ("num_draft_tokens: 5", "num_draft_tokens: 0", 6, "is 0: must be at least 1"),
        ("num_draft_tokens: 5", "num_draft_tokens: 900", 6, "is 900: must be at most 64"),
        ("num_draft_tokens: 5", "num_draft_tokens: five", 6, "is 'five': must be a whole number"),
        ("num_draft_tokens: 5", "num_draft_tokens: true", 6, "is 'true': must be a whole number"),
        ("num_draft_tokens: 5", "num_draft_tokens:", 6, "has no value"),
        ("num_draft_tokens: 5", "heads: here", 6, "does not take the key 'speculation.heads'"),
        ("num_draft_tokens: 5", "heads: here", 6, "it is a key of these methods: hybrid, medusa"),
        ("num_draft_tokens: 5", "tree: wide", 6, "chain"),
        ("prompt_lookup", "prompt_lokup", 5, "did you mean 'prompt_lookup'?"),
        ("method: prompt_lookup", "num: 1", 5, "missing key 'speculation.method'"),
        ("max_input_len: 100", "max_input_len: 200", 10, "must be below engine.max_seq_len"),
        ("dtype: bfloat16", "kv_cache_tokens: 199", 9, "at least engine.max_seq_len, which is"),
        ("dtype: bfloat16", "max_num_tokens: 63", 9, "is 63: must be at least 64"),
        ("dtype: bfloat16", "prefix_cache: 3", 9, "must be true or false"),
        ("num_draft_tokens: 5", "min_matching_ngram_size: 9", 6, "must not be above"),
        ("exact_match: 1", "exact_match: yes", 14, "'validate.gates.exact_match' is 'yes'"),
        ("name: demo", "name: demo\nname: other", 2, "'name' is given twice"),
        ("name: demo", "name: [demo", 2, "not valid YAML"),
        ("name: demo", 'name: "\x01"', 1, "not valid YAML: the character #x01"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_line(
    old: str, new: str, line: int, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, GOOD.replace(old, new))
    message = str(caught.value)
    assert words in message
    assert f"demo.yaml:{line}: " in message


@pytest.mark.parametrize(
    "key",
    ["kv_cache_tokens: 9000", "max_num_tokens: 64", "prefix_cache: true", "batch_invariant: false"],
)
@pytest.mark.parametrize("backend", ["tensorrt", "llmapi"])
def test_keys_of_the_batching_cpu_engine_are_refused_elsewhere(
    key: str, backend: str, tmp_path: Path
) -> None:
    text = GOOD.replace("backend: openvino", f"backend: {backend}\n  {key}")
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    name = key.split(":")[0]
    assert f"demo.yaml:9: 'engine.{name}' is for backend openvino; backend {backend} ig" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("keys", "rows"),
    [
        ("max_batch_size: 1", 128),  # 1 * 6 + 64 would be less
        ("max_batch_size: 32", 32 * 6 + 64),
        ("max_num_tokens: 64", 64),
    ],
)
def test_a_step_has_rows_for_every_draft_and_some_of_prompts(
    keys: str, rows: int, tmp_path: Path
) -> None:
    config = read(tmp_path, GOOD.replace("dtype: bfloat16", keys))
    assert config.max_num_tokens == rows


def test_a_step_with_less_rows_than_a_draft_is_refused(tmp_path: Path) -> None:
    text = GOOD.replace("num_draft_tokens: 5", "num_draft_tokens: 64")
    with pytest.raises(ConfigError, match=r"demo.yaml:9: .* above the 64 tokens"):
        read(tmp_path, text.replace("dtype: bfloat16", "max_num_tokens: 64"))


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing key 'engine'"):
        read(tmp_path, "name: a\ntarget: {model: b}\n")


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_config(tmp_path / "nothing.yaml")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is empty"):
        read(tmp_path, "")


def test_paths_hold_home_and_variables_and_start_here_or_at_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read(tmp_path, GOOD)
    (tmp_path / "beside").mkdir()
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "here").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_file("here", config) == elsewhere / "here"
    assert find_file("beside", config) == tmp_path / "beside"
    assert find_file("$PLACE/beside", config) == tmp_path / "beside"
    assert find_file("~/beside", config) == tmp_path / "beside"
    assert find_file("nowhere", config) is None


@pytest.mark.parametrize("path", sorted(Path("model_configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_is_valid_and_named_like_its_file(path: Path) -> None:
    assert read_config(path).name == path.stem


def test_a_listed_tree_is_completed_and_counts_its_nodes(tmp_path: Path) -> None:
    options = read(tmp_path, MEDUSA.format("[[0, 1], [1]]")).speculation
    assert isinstance(options, Medusa)
    assert options.tree == ((0,), (1,), (0, 1)) and options.num_draft_tokens == 3


SHORT = MEDUSA.replace(
    "  max_input_len: 100\n  max_seq_len: 200\n", "  max_input_len: 2\n  max_seq_len: {}\n"
)
THIRTY = str([[0] * 30])  # its prefixes are nodes, too


@pytest.mark.parametrize(
    ("tree", "longest", "words"),
    [
        (THIRTY, 18, ":7: 'speculation' drafts 30 tokens a step: must be below .* .17."),
        (THIRTY, 31, ":7: 'speculation' drafts 30 tokens a step"),
        (THIRTY, 32, None),
        ("[[0]]", 12, None),
        ("[[0]]", 2, ":7: 'speculation' drafts 1 tokens a step"),
        ("auto", 12, None),  # the plan grows it first
    ],
)
def test_a_tree_is_measured_with_all_its_nodes(
    tree: str, longest: int, words: str | None, tmp_path: Path
) -> None:
    text = SHORT.format(tree, longest).replace("max_input_len: 2", "max_input_len: 1")
    if words is None:
        assert read(tmp_path, text).engine.max_seq_len == longest
        return
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("method", "tree", "words"),
    [
        ("medusa", [[0] * 200, [1] * 56], "has 256 nodes .*: must be at most 255"),
        ("hybrid", [[0] * 65], "has 65 nodes with those that its paths pass: must be at most 64"),
        ("eagle", [[0] * 17], "has 17 levels .*: must be at most 16"),
        ("eagle", [[i, *[0] * 15] for i in range(10)] + [[0] * 9 + [i] * 7 for i in range(1, 10)]
         + [[1] * 9 + [i] * 7 for i in range(1, 10)], "nodes .*: must be at most 256"),
        ("medusa", [[0] * 9000], "path 0 has 9000 levels: must have at most 256"),
    ],
)  # fmt: skip
def test_the_bound_of_a_key_is_that_of_the_tree_it_counts(
    method: str, tree: list[list[int]], words: str, tmp_path: Path
) -> None:
    text = SHORT.format(tree, 4000).replace("method: medusa", f"method: {method}")
    with pytest.raises(ConfigError, match=":7: 'speculation.tree'.* " + words):
        read(tmp_path, text)


def test_a_tree_may_be_left_to_the_planner(tmp_path: Path) -> None:
    config = read(tmp_path, MEDUSA.format("auto"))
    assert isinstance(config.speculation, Medusa) and config.speculation.tree == "auto"
    assert config.drafter() == "some/heads" and config.lossless


def test_a_redrafter_drafts_its_beams_whole(tmp_path: Path) -> None:
    text = with_lines(REDRAFTER.format("drafter"), "num_beams: 4")
    options = read(tmp_path, text).speculation
    assert isinstance(options, ReDrafter) and options.greedy_search
    assert (options.draft_len_per_beam, options.num_draft_tokens) == (5, 20)
    with pytest.raises(ConfigError, match="'speculation.num_beams' is 0: must be at least 1"):
        read(tmp_path, text.replace("num_beams: 4", "num_beams: 0"))


def test_typical_acceptance_is_not_called_lossless(tmp_path: Path) -> None:
    config = read(tmp_path, MEDUSA.format("auto\n  acceptance: typical"))
    assert not config.lossless


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ("[[0], [0]]", r":7: 'speculation.tree': path 1, \[0\], is listed twice"),
        ("[[0], []]", r":7: 'speculation.tree': path 1 is empty"),
        ("[[0, 10]]", r"a rank must be from 0 to 9"),
        ("[0, 1]", r":7: 'speculation.tree\[0\]' must be a list"),
        ("best", r":7: 'speculation.tree' is 'best'"),
        ("[[0]]\n  num_draft_tokens: 4", r":8: .* is 4, but speculation.tree has 1 nodes"),
    ],
)
def test_an_impossible_tree_is_refused_with_its_line(tree: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, MEDUSA.format(tree))


TRAIN = """
train:
  files: [a.txt, b.jsonl]
  self_distillation: {prompts: p.jsonl, temperature: 0.3}
  medusa: {stage: medusa2, num_heads: 3, lora_rank: 8, schedule: {epochs: 1, learning_rate: 1.0e-4}}
  draft: {layers: [0, 2, 5]}
"""


def test_reads_the_training_section(tmp_path: Path) -> None:
    train = read(tmp_path, GOOD + TRAIN).train
    assert train.files == ("a.txt", "b.jsonl") and train.draft.layers == (0, 2, 5)
    assert train.self_distillation and train.self_distillation.temperature == 0.3
    assert train.medusa.lora_rank == 8 and train.medusa.schedule.learning_rate == 1e-4
    assert read(tmp_path, GOOD).train.medusa.schedule.epochs == 2


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("num_heads: 3", "heads: 3", 19, "unknown key 'train.medusa.heads'; did you mean"),
        ("stage: medusa2", "stage: medusa3", 19, "'train.medusa.stage' is 'medusa3'"),
        ("stage: medusa2, ", "", 19, "'train.medusa.lora_rank' is for stage: medusa2"),
        ("num_heads: 3", "soft_labels: true", 19, "soft_labels' is for stage: medusa1"),
        ("epochs: 1,", "epochs: 0,", 19, "must be at least 0.001"),
        ("[0, 2, 5]", "[0, 5, 2]", 20, "'train.draft.layers' must rise"),
        ("[0, 2, 5]", "[0, 2, 5], num_layers: 2", 20, "but 'train.draft.layers' lists 3"),
    ],
)
def test_refuses_an_impossible_training(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, GOOD + TRAIN.replace(old, new))
    assert f"demo.yaml:{line}: " in str(error.value) and words in str(error.value)


def test_the_draft_of_eagle3_takes_no_keys_of_heads(tmp_path: Path) -> None:
    text = "  method: eagle3\n  draft: {model: small, heads: x}\n"
    with pytest.raises(ConfigError, match=r"demo.yaml:\d+: unknown key 'speculation.draft.heads'"):
        read(tmp_path, GOOD.replace("  method: prompt_lookup\n", text))
