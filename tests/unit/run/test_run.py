"""The stages, on the tiny model: skipped when fresh, rebuilt for a reason, safe when broken off."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest

from specpipe.cli.present import results_text
from specpipe.config.run_config import read_config
from specpipe.core.artifacts import MISSING, Manifest, Workspace, read_artifact
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.plan.make_plan import make_plan
from specpipe.run.run import Run
from specpipe.run.stages import build, require_repository, status
from specpipe.validate.stage import validate_run
from tests.helpers.packed_models import pack_model


def setup(path: Path, root: Path):
    config = read_config(path)
    return config, Workspace(root / "work", config.name)


def test_a_second_build_finds_everything_fresh(write_config, tmp_path: Path) -> None:
    run = setup(write_config(), tmp_path)
    first, second = build(Run(*run)), build(Run(*run))
    assert [(r.stage, r.fresh) for r in first] == [
        ("convert", False), ("compile", False), ("package", False),
    ]  # fmt: skip
    assert all(result.fresh for result in second)
    assert (run[1].repository / "tensorrt_llm/1/engines/target/openvino_model.xml").is_file()


@pytest.mark.parametrize(("method", "weights"), [("gptq", "int4_awq"), ("modelopt_fp8", "fp8")])
def test_a_model_that_others_quantised_is_built_like_any_other(
    method: str, weights: str, write_config, tiny: Path, tmp_path: Path
) -> None:
    pack_model(tiny, tmp_path / "packed", method)
    target = {"model": str(tmp_path / "packed")}
    engine = {"backend": "openvino", "max_input_len": 100, "max_seq_len": 200}
    with pytest.raises(Unsupported, match=f"set engine.quantization: {weights}"):
        build(Run(*setup(write_config(target=target, engine=engine), tmp_path)))
    engine["quantization"] = weights
    run = setup(write_config(target=target, engine=engine), tmp_path)
    build(Run(*run))
    assert all(result.fresh for result in build(Run(*run)))
    inputs = json.loads((run[1].checkpoint("target") / "specpipe.json").read_text())["inputs"]
    assert inputs["weights in"] == weights and "calibration prompts" not in inputs


def test_stages_can_be_run_alone_and_name_the_one_before(write_config, tmp_path: Path) -> None:
    run = setup(write_config(), tmp_path)
    with pytest.raises(ConfigError, match="run `specpipe convert`"):
        build(Run(*run), ("compile",))
    build(Run(*run), ("convert",))
    with pytest.raises(ConfigError, match="run `specpipe compile`"):
        build(Run(*run), ("package",))
    build(Run(*run), ("compile",))
    build(Run(*run), ("package",))
    require_repository(Run(*run))


def test_only_what_a_change_touches_is_built_again(write_config, tmp_path: Path) -> None:
    build(Run(*setup(write_config(), tmp_path)))
    longer = {"backend": "openvino", "max_input_len": 100, "max_seq_len": 300}
    results = build(Run(*setup(write_config(engine=longer), tmp_path)))
    assert [(r.stage, r.fresh) for r in results] == [
        ("convert", True), ("compile", False), ("package", False),
    ]  # fmt: skip
    assert results[1].reason == "max_seq_len changed from 200 to 300"


def test_status_names_what_is_stale_and_why_and_changes_nothing(
    write_config, tiny: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny, tmp_path / "source"))
    run = setup(write_config(target={"model": str(source)}), tmp_path)
    assert status(Run(*run))[0].reason == "no earlier output"
    build(Run(*run))
    assert all(result.fresh for result in status(Run(*run)))
    tokenizer = source / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    convert, compiled, packaged = status(Run(*run))
    assert convert.reason.startswith("source tokenizer_config.json changed from ")
    assert compiled.fresh and packaged.fresh  # they match the checkpoint that is there


def test_status_lists_what_is_there_without_the_folder_of_the_source(
    write_config, tiny: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny, tmp_path / "source"))
    run = setup(write_config(target={"model": str(source)}), tmp_path)
    build(Run(*run), ("convert",))
    source.rename(tmp_path / "elsewhere")
    checkpoint, engine, repository = status(Run(*run))
    assert checkpoint.reason.startswith("not compared: ") and "no such folder" in checkpoint.reason
    assert (engine.reason, repository.reason) == (MISSING, MISSING)
    text = results_text([checkpoint, engine])
    assert "built, not compared: " in text and "stale" not in text.splitlines()[0]
    source.mkdir()  # and what is there cannot be read
    assert [r.fresh for r in status(Run(*run))] == [False, False, False]


def test_a_checkpoint_of_a_version_that_knew_one_end_token_is_stale(
    write_config, tmp_path: Path
) -> None:
    run = setup(write_config(), tmp_path)
    build(Run(*run))
    file = run[1].checkpoint("target") / "specpipe.json"
    manifest = read_artifact(file.parent).manifest  # type: ignore[union-attr]
    older = Manifest("checkpoint", {**manifest.inputs, "format": "3"})
    values = {**json.loads(file.read_text()), "inputs": older.inputs, "key": older.key}
    file.write_text(json.dumps(values))
    assert status(Run(*run))[0].reason.startswith("format changed from 3 to ")


def test_a_changed_end_token_is_converted_and_packaged_again(
    write_config, tiny: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny, tmp_path / "source"))
    run = setup(write_config(target={"model": str(source)}), tmp_path)
    build(Run(*run))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 0]}))
    assert status(Run(*run))[0].reason.startswith("source generation_config.json changed from ")
    said: list[str] = []
    build(Run(*run), notify=said.append)
    facts = run[1].repository / "preprocessing/1/tokenizer/tokenizer_facts.json"
    assert json.loads(facts.read_text())["end_ids"] == [5, 0]
    assert not any("ends a turn" in line for line in said)


def test_a_build_names_the_token_that_ends_a_turn_but_no_answer(
    write_config, tiny: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny, tmp_path / "source"))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))
    said: list[str] = []
    run = setup(write_config(target={"model": str(source)}), tmp_path)
    build(Run(*run), ("convert",), notify=said.append)
    (remark,) = [line for line in said if "ends a turn" in line]
    assert remark.startswith("convert target: the chat template ends a turn with token 0, which is")


def test_an_engine_compiled_from_other_weights_is_refused(
    write_config, tiny_draft: Path, tmp_path: Path
) -> None:
    run = setup(write_config(), tmp_path)
    build(Run(*run))
    other = setup(write_config(name="other", target={"model": str(tiny_draft)}), tmp_path)
    build(Run(*other))
    shutil.rmtree(run[1].engine("target"))
    shutil.copytree(other[1].engine("target"), run[1].engine("target"))
    with pytest.raises(ConfigError, match="compiled from other weights"):
        build(Run(*run), ("package",))
    with pytest.raises(ConfigError, match="compiled from other weights"):
        require_repository(Run(*run))


def test_a_build_that_is_killed_leaves_nothing_that_looks_whole(
    write_config, tmp_path: Path
) -> None:
    run = setup(write_config(), tmp_path)

    def die(done: int, total: int) -> None:
        if done > total / 2:
            os.kill(os.getpid(), signal.SIGKILL)

    child = multiprocessing.get_context("fork").Process(
        target=lambda: build(Run(*run), progress=die)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not run[1].checkpoint("target").exists()
    assert [r.fresh for r in build(Run(*run))] == [False, False, False]
    assert not list(run[1].engines.rglob(".*.tmp"))


def test_an_interrupted_build_goes_on_where_it_was(write_config, tmp_path: Path) -> None:
    run = setup(write_config(), tmp_path)
    build(Run(*run), ("convert",))
    assert [r.fresh for r in build(Run(*run))] == [True, False, False]


@pytest.mark.parametrize("stage", ["convert", "compile"])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    stage: str, write_config, tmp_path: Path
) -> None:
    """A limit on file sizes makes the kernel itself refuse the write, as a full disk would."""
    run = setup(write_config(), tmp_path)
    if stage == "compile":
        build(Run(*run), ("convert",))
    answers = multiprocessing.get_context("fork").SimpleQueue()

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            build(Run(*run))
        except BaseException as error:
            answers.put(f"{type(error).__name__}: {error}")

    child = multiprocessing.get_context("fork").Process(target=limited)
    child.start()
    child.join()
    message = answers.get()
    assert f"StageFailed: {stage}: the disk is full" in message and "free some space" in message
    left = run[1].engines.glob("checkpoints/*" if stage == "convert" else "target*")
    assert list(left) == []


def test_two_builds_at_once_both_succeed_and_one_does_the_work(
    write_config, tmp_path: Path
) -> None:
    run = setup(write_config(), tmp_path)
    context = multiprocessing.get_context("fork")
    answers, barrier = context.SimpleQueue(), context.Barrier(2)

    def one() -> None:
        barrier.wait()
        answers.put([result.fresh for result in build(Run(*run))])

    children = [context.Process(target=one) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert sorted([answers.get(), answers.get()]) == [[False] * 3, [True] * 3]


def test_two_builds_of_the_same_inputs_give_equal_bytes(write_config, tmp_path: Path) -> None:
    path = write_config()
    trees = []
    for place in ("one", "two"):
        run = setup(path, tmp_path / place)
        build(Run(*run))
        roots = (run[1].engines, run[1].repository)
        trees.append({
            str(file.relative_to(root)): file.read_bytes()
            for root in roots for file in root.rglob("*")
            if file.is_file() and not file.name.startswith(".")
        })  # fmt: skip
    assert trees[0] == trees[1]


@pytest.mark.parametrize("place", ["checkpoint", "engine", "repository"])
def test_a_folder_of_the_users_is_refused_before_any_work(
    place: str, write_config, tmp_path: Path
) -> None:
    run = setup(write_config(), tmp_path)
    path = run[1].repository if place == "repository" else getattr(run[1], place)("target")
    path.mkdir(parents=True)
    (path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=f"{path} is not empty and has no specpipe.json"):
        build(Run(*run))
    assert [f for f in run[1].root.rglob("*") if f.is_file()] == [path / "thesis.txt"]
    assert any("cannot be built: " in result.reason for result in status(Run(*run)))
    assert any("is not empty and has no" in str(r) for r in make_plan(*run).rejections)


def test_a_file_of_the_users_among_ours_is_refused_only_where_it_would_be_deleted(
    write_config, tmp_path: Path
) -> None:
    run = setup(write_config(), tmp_path)
    build(Run(*run))
    notes = run[1].repository / "notes.txt"
    notes.write_text("mine")
    assert all(result.fresh for result in build(Run(*run)))
    assert any("notes.txt; build does not replace" in note for note in make_plan(*run).notes)
    longer = {"backend": "openvino", "max_input_len": 100, "max_seq_len": 300}
    changed = setup(write_config(engine=longer), tmp_path)
    before = {f: f.stat().st_mtime_ns for f in run[1].root.rglob("*") if f.is_file()}
    with pytest.raises(ConfigError, match=r"did not write: notes.txt(.|\n)*move it elsewhere"):
        build(Run(*changed))
    assert {f: f.stat().st_mtime_ns for f in run[1].root.rglob("*") if f.is_file()} == before


def test_a_refused_plan_builds_nothing(write_config, tmp_path: Path) -> None:
    engine = {"backend": "openvino", "gpu": "L4", "tp_size": 2}
    run = setup(write_config(engine=engine), tmp_path)
    with pytest.raises(Unsupported, match="runs on the CPU(.|\n)*one rank"):
        build(Run(*run))
    assert not (tmp_path / "work").exists()


def test_the_manifest_says_what_the_engine_was_made_from(write_config, tmp_path: Path) -> None:
    run = setup(write_config(), tmp_path)
    build(Run(*run))
    manifest = json.loads((run[1].engine("target") / "specpipe.json").read_text())
    assert {"checkpoint", "openvino", "max_seq_len", "quantization"} <= set(manifest["inputs"])


def test_bad_prompts_are_refused_before_a_server_is_started(
    write_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "specpipe.validate.stage.start_repository", lambda *given: pytest.fail("a server started")
    )
    texts = ["short", "word " * 200]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": t}) + "\n" for t in texts))
    run = setup(write_config(validate={"prompts": str(tmp_path / "p.jsonl")}), tmp_path)
    build(Run(*run))
    with pytest.raises(ConfigError, match=r"prompt 2 of .*p.jsonl: .* 100 .*\n  hint: shorten it"):
        validate_run(Run(*run), url=None)
