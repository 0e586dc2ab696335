"""Plans: what is refused, with every reason at once, and the commands of the GPU path."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.core.model import ModelConfig
from specpipe.engine.gpus import GPUS
from specpipe.engine.tensorrt.notes import engine_notes
from specpipe.plan.make_plan import make_plan, require_buildable
from specpipe.plan.outlook import assumptions
from specpipe.report.plan_json import plan_json
from specpipe.report.present_plan import plan_text
from specpipe.tune.cost import read_costs
from tests.helpers.models import make_heads, make_llama
from tests.helpers.trtllm_build import LLAMA_8B, parse

LLAMA = Path("model_configs/llama70b_draft7b.yaml")
LOOKAHEAD = Path("model_configs/llama8b_lookahead.yaml")


def plan_of(path: Path, tmp_path: Path):
    config = read_config(path)
    return make_plan(config, Workspace(tmp_path, config.name))


def changed(path: Path, tmp_path: Path, *pairs: tuple[str, str]) -> Path:
    text = path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "changed.yaml"
    file.write_text(text)
    return file


def test_what_a_redrafter_engine_does_with_requests_is_noted(tmp_path: Path) -> None:
    greedy = read_config(Path("model_configs/vicuna7b_redrafter.yaml"))
    sampled = changed(
        Path(greedy.path), tmp_path,
        ("  num_beams: 5\n", "  greedy_search: false\n"), ("dtype: float16", "quantization: int8"),
    )  # fmt: skip
    (note,) = engine_notes(greedy, LLAMA_8B, GPUS["H100-SXM"])
    assert "send greedy requests" in note
    notes = list(engine_notes(read_config(sampled), LLAMA_8B, GPUS["H100-SXM"]))
    assert "use only the temperature of a request" in notes[0]
    assert "16-bit and fp8 weights, not with int8" in notes[1]


def test_a_calibrated_drafter_is_supposed_to_guess_as_on_its_hold_out() -> None:
    """1 + 0.5 + 0.5 * 0.4: what is right further on is not known, nor are further beams."""
    config = read_config(Path("model_configs/vicuna7b_redrafter.yaml"))
    (assumed,) = assumptions(config, [[0.5, 0.2], [0.4, 0.1]])
    assert assumed.tokens == pytest.approx(1.7) and "as calibrated" in assumed.label
    assert len(assumptions(config, None)) > 1


def test_a_tree_of_drafts_on_a_gpu_that_upstream_lacked_kernels_for_is_noted() -> None:
    lookahead, draft = read_config(LOOKAHEAD), read_config(LLAMA)
    assert any("issue 6158" in note for note in engine_notes(lookahead, LLAMA_8B, GPUS["B200"]))
    assert not any("6158" in note for note in engine_notes(draft, LLAMA_8B, GPUS["B200"]))
    for name in ("H200", "RTX-5090"):
        assert not any("6158" in note for note in engine_notes(lookahead, LLAMA_8B, GPUS[name]))


def test_heads_that_no_kernel_for_drafts_is_known_for_are_noted() -> None:
    """Qwen2-7B has seven query heads a key-value head."""
    lookahead, seven = read_config(LOOKAHEAD), replace(LLAMA_8B, num_attention_heads=56)

    def noted(model: ModelConfig, gpu: str = "A100-80GB-SXM", cache: str = "none") -> bool:
        engine = replace(lookahead.engine, kv_cache_quantization=cache)
        notes = engine_notes(replace(lookahead, engine=engine), model, GPUS[gpu])
        return any("7 query heads share a key-value head" in note for note in notes)

    assert noted(seven) and noted(seven, "H100-SXM") and noted(seven, "L40S", "fp8")
    assert not noted(LLAMA_8B) and not noted(seven, "H100-SXM", "fp8")


def test_the_tiny_run_can_be_built(write_config, tmp_path: Path) -> None:
    plan = plan_of(write_config(), tmp_path)
    require_buildable(plan)
    assert plan.rejections == plan.gaps == plan.commands == ()
    assert "`specpipe build` can build this run" in plan_text(plan)


def test_a_known_model_is_planned_without_being_there(tmp_path: Path) -> None:
    plan = plan_of(LLAMA, tmp_path)
    assert plan.rejections == ()
    target, draft = plan.requests["target"].model, plan.requests["draft"].model
    assert round(target.num_parameters / 1e9) == 69 and round(draft.num_parameters / 1e9, 1) == 6.7


def value(command: dict, flag: str) -> str:
    return command["argv"][command["argv"].index(flag) + 1]


def test_lookahead_is_lowered_to_its_mode_and_exactly_its_draft_length(tmp_path: Path) -> None:
    plan = plan_of(LOOKAHEAD, tmp_path)
    assert plan.rejections == ()
    (target,) = plan_json(plan)["commands"]
    assert value(target, "--speculative_decoding_mode") == "lookahead_decoding"
    assert value(target, "--max_draft_len") == "83"
    assert int(value(target, "--max_num_tokens")) >= 8 * 84


def test_a_lookahead_that_drafts_nothing_cannot_be_an_engine(tmp_path: Path) -> None:
    smallest = (("window_size: 7", "window_size: 1"), ("ngram_size: 7", "ngram_size: 1"),
                ("set_size: 7", "set_size: 0"))  # fmt: skip
    path = changed(LOOKAHEAD, tmp_path, *smallest)
    assert "would draft no tokens" in " ".join(map(str, plan_of(path, tmp_path).rejections))


def test_the_llm_api_takes_models_that_others_quantised_in_any_way(
    write_config, tiny: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny, tmp_path / "nvfp4"))
    facts = json.dumps({"quantization": {"quant_algo": "NVFP4"}})
    (model / "hf_quant_config.json").write_text(facts)
    engine = {"backend": "llmapi", "gpu": "B200", "dtype": "bfloat16", "max_input_len": 100,
              "max_seq_len": 200}  # fmt: skip
    target = {"model": str(model)}
    plan = plan_of(write_config(target=target, engine=engine), tmp_path)
    assert not [r for r in plan.rejections if "quantis" in str(r)]
    with pytest.raises(Unsupported, match="NVFP4 with KV cache None cannot be read"):
        plan_of(write_config(target=target, engine={**engine, "backend": "tensorrt"}), tmp_path)


def test_the_cpu_engine_has_no_quantised_kv_cache(write_config, tmp_path: Path) -> None:
    engine = {"backend": "openvino", "max_input_len": 100, "max_seq_len": 200,
              "kv_cache_quantization": "fp8"}  # fmt: skip
    (rejection,) = plan_of(write_config(engine=engine), tmp_path).rejections
    assert "does not support kv_cache_quantization" in str(rejection)


def test_eight_bit_weights_and_cache_halve_the_planned_memory(tmp_path: Path) -> None:
    whole = plan_of(LOOKAHEAD, tmp_path).memory
    quantised = ("dtype: ", "quantization: fp8\n  kv_cache_quantization: fp8\n  dtype: ")
    half = plan_of(changed(LOOKAHEAD, tmp_path, quantised), tmp_path).memory
    assert whole is not None and half is not None
    before, after = whole.footprints["target"], half.footprints["target"]
    assert after.kv_per_token * 2 == before.kv_per_token
    assert 0.5 < after.weights / before.weights < 0.6  # embedding and head stay in 16 bits


def test_the_commands_of_the_gpu_path_are_argument_lists(tmp_path: Path) -> None:
    target, draft = plan_json(plan_of(LLAMA, tmp_path))["commands"]
    assert target["argv"][0] == draft["argv"][0] == "trtllm-build"
    assert value(target, "--speculative_decoding_mode") == "draft_tokens_external"
    assert value(target, "--max_draft_len") == "5"
    assert value(target, "--use_paged_context_fmha") == "enable"
    assert "--speculative_decoding_mode" not in draft["argv"]
    for command in (target, draft):
        assert value(command, "--max_beam_width") == "1"
        assert int(value(command, "--max_num_tokens")) >= 8 * 6
        assert value(command, "--max_input_len") == "4096"  # prompts grow by what was accepted


def test_every_flag_is_one_that_trtllm_build_knows(tmp_path: Path) -> None:
    plans = [plan_of(path, tmp_path) for path in (LLAMA, LOOKAHEAD)]
    for command in (command for plan in plans for command in plan.commands):
        parse(command.argv, "1.2.1")


def test_a_model_that_divides_by_its_ranks_can_be_built(tmp_path: Path) -> None:
    plan = plan_of(LLAMA, tmp_path)
    assert plan.config.engine.parallel.world_size == 4
    require_buildable(plan)


def test_a_model_that_does_not_divide_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    path = changed(LLAMA, tmp_path, ("tp_size: 4", "tp_size: 4\n  pp_size: 3"))
    plan = plan_of(path, tmp_path)
    with pytest.raises(Unsupported, match="80 layers do not divide by engine.pp_size(.|\n)*draft"):
        require_buildable(plan)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ((("gpu: H100-SXM", "gpu: H100"),), "did you mean H100-PCIe or H100-SXM"),
        ((("  gpu: H100-SXM\n", ""),), "engine.gpu is not given"),
        ((("tp_size: 4", "tp_size: 1"),), "GiB of GPU memory on each H100-SXM"),
        ((("tp_size: 4", "tp_size: 3"),), "64 attention heads do not divide by engine.tp_size"),
        ((("max_seq_len: 4096", "max_seq_len: 9000"),), "supports at most 4096 positions"),
        ((("bfloat16", "float32"),), "engine.dtype is float32 (the default), which"),
        ((("Llama-2-7b-chat-hf", "Llama-3.1-8B-Instruct"),), "vocabulary of 128256"),
        ((("method: draft_model", "method: hybrid"),), "does not support method hybrid"),
        ((("num_draft_tokens: 5", "draft_length: adaptive"),), "ignores speculation.draft_length"),
        ((("num_draft_tokens: 5", "max_concurrency: 4"),), "ignores speculation.max_concurrency"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_work_is_refused(pairs, words: str, tmp_path: Path) -> None:
    plan = plan_of(changed(LLAMA, tmp_path, *pairs), tmp_path)
    assert words in " ".join(map(str, plan.rejections))


def test_all_reasons_come_at_once(tmp_path: Path) -> None:
    path = changed(LLAMA, tmp_path, ("gpu: H100-SXM", "gpu: H9"), ("tp_size: 4", "tp_size: 3"),
                   ("max_seq_len: 4096", "max_seq_len: 9000"))  # fmt: skip
    plan = plan_of(path, tmp_path)
    assert len(plan.rejections) >= 4
    with pytest.raises(Unsupported) as caught:
        require_buildable(plan)
    assert all(str(rejection) in str(caught.value) for rejection in plan.rejections)


@pytest.mark.parametrize("method", ["draft_model", "hybrid"])
def test_a_draft_with_another_vocabulary_is_refused_with_the_difference(
    method: str, write_config, tiny: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    file = other / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = (t for t, i in vocabulary.items() if i in (50, 51))
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    file.write_text(json.dumps(tokenizer))
    speculation = {"method": method, "draft": {"model": str(other)}}
    plan = plan_of(write_config(speculation=speculation), tmp_path)
    assert re.search(r"differ in 2 of the target's \d+ tokens", " ".join(map(str, plan.rejections)))


def test_an_unknown_model_says_where_it_was_looked_for(write_config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'target.model' is 'no/such/place'"):
        plan_of(write_config(target={"model": "no/such/place"}), tmp_path)


def test_a_hub_id_that_cannot_be_had_is_a_sentence(write_config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="and HF_HUB_OFFLINE is set"):
        plan_of(write_config(target={"model": "nobody/nothing"}), tmp_path)


def test_gpus_have_plausible_facts() -> None:
    assert all(75 < gpu.sm < 130 and 10 < gpu.memory_gb < 300 for gpu in GPUS.values())


def medusa(folder: Path, **options: object) -> dict[str, object]:
    return {"method": "medusa", "heads": str(folder), **options}


def test_an_auto_tree_is_grown_from_the_heads_calibration(write_config, tmp_path: Path) -> None:
    make_heads(tmp_path / "heads", seed=1, heads=2)
    accuracy = [[0.9] + [0.01] * 9, [0.8] + [0.01] * 9]
    (tmp_path / "heads/calibration.json").write_text(json.dumps({"conditional": accuracy}))
    config = write_config(speculation=medusa(tmp_path / "heads", num_draft_tokens=2))
    plan = plan_of(config, tmp_path)
    assert plan.config.speculation.tree == ((0,), (0, 0))
    assert plan.requests["target"].draft_nodes == 2
    require_buildable(plan)


@pytest.mark.parametrize(("length", "fits"), [(11, False), (12, True)])
def test_a_planned_tree_is_measured_once_it_is_grown(
    length: int, fits: bool, write_config, tmp_path: Path
) -> None:
    """16 nodes are asked for, and one head has ten ranks to give."""
    make_heads(tmp_path / "heads", seed=1, heads=1)
    engine = {"backend": "openvino", "max_input_len": 4, "max_seq_len": length}
    plan = plan_of(write_config(speculation=medusa(tmp_path / "heads"), engine=engine), tmp_path)
    assert plan.config.speculation.num_draft_tokens == 10
    reasons = [str(r) for r in plan.rejections]
    assert (
        reasons == [] if fits else "tree has 10 nodes, but engine.max_seq_len is 11" in reasons[0]
    )
    assert fits or "set speculation.num_draft_tokens to 9 or less" in reasons[0]


def test_a_tree_deeper_than_the_heads_are_many_is_refused(write_config, tmp_path: Path) -> None:
    make_heads(tmp_path / "heads", seed=1, heads=2)
    config = write_config(speculation=medusa(tmp_path / "heads", tree=[[0, 0, 0]]))
    (rejection,) = plan_of(config, tmp_path).rejections
    assert "3 levels deep, but there are 2 heads" in str(rejection)


def test_heads_of_another_target_are_refused(write_config, tmp_path: Path) -> None:
    make_heads(tmp_path / "heads", seed=1, hidden=32)
    (rejection,) = plan_of(
        write_config(speculation=medusa(tmp_path / "heads")), tmp_path
    ).rejections
    assert "the heads read hidden states of 32 values, the target has 64" in str(rejection)


def test_missing_heads_are_named_with_their_key(write_config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'speculation.heads' is '.*nowhere': no such file"):
        plan_of(write_config(speculation=medusa(tmp_path / "nowhere")), tmp_path)


def test_lossy_acceptance_is_called_lossy(write_config, tmp_path: Path) -> None:
    make_heads(tmp_path / "heads", seed=1)
    config = write_config(speculation=medusa(tmp_path / "heads", acceptance="typical"))
    plan = plan_of(config, tmp_path)
    assert "LOSSY" in plan_text(plan) and plan_json(plan)["lossless"] is False


@pytest.mark.parametrize("rows", [320, 384, 512])
def test_a_draft_whose_table_is_padded_otherwise_can_be_built_for_the_cpu(
    rows: int, write_config, tiny: Path, tmp_path: Path
) -> None:
    draft = make_llama(tmp_path / "draft", seed=2, vocab_size=rows, num_hidden_layers=1)
    speculation = {"method": "draft_model", "draft": {"model": str(draft)}}
    plan = plan_of(write_config(speculation=speculation), tmp_path)
    require_buildable(plan)
    assert plan.notes == ()


def test_a_draft_with_less_padding_is_noted_and_one_with_more_is_refused_for_gpus(
    write_config, tiny: Path, tmp_path: Path
) -> None:
    padded = make_llama(tmp_path / "padded", seed=2, vocab_size=384)

    def plan(target: Path, draft: Path):
        speculation = {"method": "draft_model", "draft": {"model": str(draft)}}
        engine = {"backend": "tensorrt", "gpu": "L4", "dtype": "float16"}
        return plan_of(
            write_config(target={"model": str(target)}, engine=engine, speculation=speculation),
            tmp_path,
        )

    note, length = plan(padded, tiny).notes
    assert "only padding" in note and "--max_input_len" in length
    assert length in plan_text(plan(padded, tiny))
    assert note.count("padding") == 1 and note in plan_text(plan(padded, tiny))
    assert plan(padded, tiny).rejections == ()
    assert "ids 320-383" in str(plan(tiny, padded).rejections)


def test_ranks_that_are_not_given_are_the_fewest_that_fit(tmp_path: Path) -> None:
    plan = plan_of(changed(LLAMA, tmp_path, ("  tp_size: 4\n", "")), tmp_path)
    assert plan.config.engine.tp_size == plan.requests["target"].engine.tp_size == 4
    half = plan_of(changed(LLAMA, tmp_path, ("tp_size: 4", "tp_size: 2")), tmp_path)
    assert half.memory is not None and not half.memory.fits


@pytest.mark.parametrize(("batch", "ranks"), [(8, 1), (64, 2), (4096, 4)])
def test_ranks_are_chosen_among_those_that_divide(batch: int, ranks: int, tmp_path: Path) -> None:
    """Qwen2-7B has 28 heads, which eight ranks cannot share, even where four are too few."""
    qwen = ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2-7B-Instruct")
    size = ("batch_size: 8", f"batch_size: {batch}")
    path = changed(LOOKAHEAD, tmp_path, qwen, ("H100-SXM", "L4"), ("size: 7", "size: 2"), size)
    plan = plan_of(path, tmp_path)
    assert plan.config.engine.tp_size == ranks
    assert not any("divide" in rejection.reason for rejection in plan.rejections)


def test_a_run_for_the_cpu_has_one_rank(write_config, tmp_path: Path) -> None:
    assert plan_of(write_config(), tmp_path).config.engine.tp_size == 1


def test_heads_that_are_still_to_be_trained_are_planned_as_training_makes_them(
    tmp_path: Path,
) -> None:
    plan = plan_of(Path("model_configs/qwen2_medusa.yaml"), tmp_path)
    model = plan.models["target"]
    assert (model.num_medusa_heads, model.num_medusa_layers) == (4, 1)
    assert any("heads/qwen2-7b is not there" in note for note in plan.notes)


def test_an_architecture_that_is_known_upstream_only_is_served_without_estimates(
    tmp_path: Path,
) -> None:
    plan = plan_of(Path("model_configs/deepseek-v3_mtp_llmapi.yaml"), tmp_path)
    assert plan.memory is None and plan.estimate is None and plan.rejections == ()
    assert "does not know all sizes of DeepseekV3ForCausalLM" in plan_text(plan)
    assert "may have no class" not in plan_text(plan)
    (text,) = plan.files.values()
    assert "decoding_type: MTP" in text


def test_a_model_of_unknown_size_is_refused_where_its_experts_do_not_fit(tmp_path: Path) -> None:
    deepseek = Path("model_configs/deepseek-v3_mtp_llmapi.yaml")
    small = plan_of(changed(deepseek, tmp_path, ("tp_size: 8", "tp_size: 1")), tmp_path)
    (rejection,) = small.rejections
    assert "weights need at least 609.9 GiB on 1 x H200 with 124.8 GiB" in rejection.reason
    absent = plan_of(changed(deepseek, tmp_path, ("  tp_size: 8\n", "")), tmp_path)
    (rejection,) = absent.rejections
    assert "set engine.tp_size to 8 or more" in rejection.hint


def test_the_json_of_a_plan_carries_everything(tmp_path: Path) -> None:
    made = json.loads(json.dumps(plan_json(plan_of(LLAMA, tmp_path))))
    assert made["buildable"] and made["tp_size"] == 4 and len(made["commands"]) == 2
    assert made["memory"]["fits"] and made["memory"]["kv_cache"]["draft"]["tokens"] % 64 == 0
    parts = made["memory"]["parts"]["target"]
    assert parts["total"] == made["memory"]["needed_bytes"]["target"] > parts["weights"]
    assert made["estimate"]["measured"] is False
    file = tmp_path / "costs.json"
    file.write_text(json.dumps(made["estimate"]["costs"]))
    costs = read_costs(file)
    assert costs.step(1) == pytest.approx(made["estimate"]["plain_ms"], abs=1e-3)
    assert costs.draft_ms > 0 and costs.handover_ms == 2


def test_a_refusal_names_sizes_that_fit_and_they_do(tmp_path: Path) -> None:
    full = (("tp_size: 4", "tp_size: 2"), ("batch_size: 8", "batch_size: 16"))
    (rejection,) = plan_of(changed(LLAMA, tmp_path, *full), tmp_path).rejections
    ways = [way.split(": ") for way in rejection.hint.split("changes: ")[1].split("; ")]
    assert len(ways) >= 2
    for key, value in ways:
        name = key.removeprefix("engine.")
        line = {"tp_size": ("tp_size: 2", f"tp_size: {value}"),
                "quantization": ("dtype:", f"quantization: {value}\n  dtype:"),
                "max_batch_size": ("batch_size: 16", f"batch_size: {value}")}  # fmt: skip
        text = changed(LLAMA, tmp_path, *full).read_text()
        old, new = line[name]
        file = tmp_path / "fits.yaml"
        file.write_text(text.replace(old, new))
        assert plan_of(file, tmp_path).rejections == (), (key, value)


@pytest.mark.parametrize(
    ("speculation", "expected"),
    [
        ({"method": "medusa", "num_draft_tokens": 4}, "expected medusa_lm_head.safetensors"),
        ({"method": "redrafter"}, "expected model.safetensors, as `specpipe train redrafter`"),
        ({"method": "eagle", "num_draft_tokens": 4}, "expected an EAGLE drafter"),
    ],
    ids=lambda value: value["method"] if isinstance(value, dict) else "",
)
def test_a_folder_without_heads_is_named_with_its_line_and_the_file_that_it_lacks(
    speculation: dict[str, object], expected: str, write_config, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    key = "heads" if speculation["method"] == "medusa" else "drafter"
    path = write_config(speculation={**speculation, key: str(tmp_path / "empty")})
    with pytest.raises(ConfigError) as caught:
        plan_of(path, tmp_path)
    assert re.search(rf"\.yaml:\d+: 'speculation.{key}': ", str(caught.value))
    assert "no weights in this folder" in str(caught.value) and expected in str(caught.value)


def test_a_model_that_is_not_there_is_named_with_its_line(write_config, tmp_path: Path) -> None:
    path = write_config(target={"model": "~/nothing/here"})
    with pytest.raises(ConfigError, match=r"\.yaml:\d+: 'target.model' is '~/nothing/here': no "):
        plan_of(path, tmp_path)


def test_plan_refuses_heads_whose_config_could_not_be_written(
    write_config, tiny: Path, tmp_path: Path
) -> None:
    make_heads(tmp_path / "heads", seed=1)
    model = Path(shutil.copytree(tiny, tmp_path / "nameless"))
    facts = {**json.loads((tiny / "config.json").read_text()), "model_type": None}
    (model / "config.json").write_text(json.dumps(facts))
    engine = {"backend": "tensorrt", "gpu": "L4", "dtype": "float16", "max_seq_len": 200,
              "max_input_len": 100}  # fmt: skip
    config = write_config(
        target={"model": str(model)}, engine=engine, speculation=medusa(tmp_path / "heads")
    )
    said = " ".join(map(str, plan_of(config, tmp_path).rejections))
    assert "nameless/config.json: config.json of the target has no model_type" in said
