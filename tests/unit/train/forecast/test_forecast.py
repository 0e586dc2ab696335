"""What a training needs before its first step: the numbers, the refusals, and the dry run."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from specpipe.cli import main
from specpipe.config.run_config import RunConfig, read_config
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import Unsupported
from specpipe.core.model import ModelConfig
from specpipe.train.draft_model import draft_kind
from specpipe.train.eagle3 import eagle3_kind, train_eagle3
from specpipe.train.forecast.amounts import Amounts, unread
from specpipe.train.forecast.dry_run import dry_run
from specpipe.train.forecast.fitting import GIB, Room, Sized, rejections
from specpipe.train.forecast.forecast import describe_target
from specpipe.train.forecast.present import lines, spelled
from specpipe.train.forecast.times import Pace, durations
from specpipe.train.job import DrafterKind
from specpipe.train.layer_net import Eagle3Net
from specpipe.train.medusa import MedusaHeads, medusa_kind, train_medusa
from specpipe.train.redrafter import RecurrentNet, redrafter_kind
from specpipe.train.target import Target

LLAMA = Path("model_configs/llama31-8b_train.yaml")
GOLDEN = Path(__file__).parents[3] / "golden/forecasts"
THIS_MACHINE = Room(int(23.5 * GIB), 32 * GIB)  # two cores without a GPU


def shown(made: DrafterKind, config: RunConfig, **where: object) -> str:
    found = dry_run(made, config, Path("absent"), notify=print, **{"gpu": None, **where})
    return "\n".join(lines(found)) + "\n"


def check_golden(name: str, text: str) -> None:
    file = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text(), "UPDATE_GOLDEN=1 writes it"


@pytest.mark.parametrize("gpu", ["H100-SXM", None])
@pytest.mark.parametrize("product", [medusa_kind, redrafter_kind, eagle3_kind, draft_kind])
def test_the_forecast_of_llama_is_the_golden_one(product, gpu: str | None) -> None:
    config = read_config(LLAMA)
    made, where = product(config), gpu or "two-cores"
    text = shown(made, config, gpu=gpu, room=THIS_MACHINE)
    assert ("refused" in text) == (gpu is None or made.kind == "draft")
    check_golden(f"{made.kind}_{where.lower()}.txt", text)


@pytest.mark.parametrize("name", ["medusa_h100-sxm", "medusa_two-cores"])
def test_the_documentation_shows_the_golden_forecast(name: str) -> None:
    assert (GOLDEN / f"{name}.txt").read_text() in Path("docs/training.md").read_text()


def test_the_command_prints_it_and_exits_with_3_if_it_is_refused(tmp_path: Path) -> None:
    flags = ["--config", str(LLAMA), "--workspace", str(tmp_path), "--dry-run"]
    fits = CliRunner().invoke(main, ["train", "medusa", *flags, "--gpu", "h100-sxm"])
    assert fits.exit_code == 0 and fits.stdout == (GOLDEN / "medusa_h100-sxm.txt").read_text()
    refused = CliRunner().invoke(main, ["train", "draft", *flags, "--gpu", "L4", "--json"])
    assert refused.exit_code == 3
    found = json.loads(refused.stdout)
    assert found["needed"]["device"] > found["room"]["gpu"] and found["pace"]["measured"] is None
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"
    unknown = CliRunner().invoke(main, ["train", "draft", *flags, "--gpu", "H100"])
    assert unknown.exit_code == 2 and "did you mean H100-PCIe or H100-SXM" in unknown.stderr
    without = CliRunner().invoke(main, ["train", "draft", *flags[:4], "--gpu", "L4"])
    assert without.exit_code == 2 and "--gpu needs --dry-run" in without.stderr


def sized(room: Room, kind: str = "medusa", **train: object) -> Sized:
    config = read_config(LLAMA)
    _, model = describe_target(config)
    options = replace(config.train, **train)
    return Sized(kind, options, model, unread(replace(config, train=options)), room)


@pytest.mark.parametrize("kind", ["medusa", "redrafter", "eagle3", "draft"])
@pytest.mark.parametrize("memory", [24, 32, 40, 64, 80])
def test_the_proposed_changes_make_it_fit_and_milder_ones_do_not(kind: str, memory: int) -> None:
    found = sized(Room(None, None, memory * GIB, "G"), kind)
    for reason in rejections(found):
        if not reason.hint.startswith("set train."):
            assert "a GPU with" in reason.hint
            continue
        for way in reason.hint.removeprefix("set ").split(" or "):
            train = found.train
            for part in way.split(" with "):
                train = with_key(train, *part.removeprefix("train.").split(": "))
            assert found.fits_memory(train) and not found.fits_memory(found.train)


def with_key(record, key: str, value: str):
    name, _, rest = key.partition(".")
    if rest:
        return replace(record, **{name: with_key(getattr(record, name), rest, value)})
    return replace(
        record, **{name: {"true": True}.get(value, int(value) if value.isdigit() else value)}
    )


@pytest.mark.parametrize("kind", ["medusa", "redrafter", "eagle3"])
def test_a_disk_that_is_too_small_names_the_number_to_change(kind: str) -> None:
    (reason,) = rejections(sized(Room(None, 40 * GIB), kind))
    assert reason.hint.startswith("set train.hidden_states: on_the_fly or give at most ")
    most = int(reason.hint.split("at most ")[1].split(" ")[0].replace(",", ""))
    found = sized(Room(None, 40 * GIB), kind)
    amounts = found.amounts.times(most / found.amounts.positions)
    assert not rejections(replace(found, amounts=amounts))
    assert rejections(replace(found, amounts=amounts.times(1.02)))


def test_trained_weights_are_counted_as_the_nets_have_them(target: Target, make_run) -> None:
    config = make_run(medusa={"num_layers": 2, "share_output": False})
    _, model = describe_target(config)
    output, train = target.output, config.train

    def trained(kind: str) -> int:
        return Sized(kind, train, model, Amounts(), Room(None, None)).work.trained

    heads = MedusaHeads(2, 2, output, share_output=False)
    assert trained("medusa") == sum(p.numel() for p in heads.parameters())
    net = RecurrentNet(3, 1, target.embedding, 0)
    assert trained("redrafter") == sum(p.numel() for p in net.parameters())
    assert trained("eagle3") == eagle3_weights(model, output.shape[0])


def eagle3_weights(model: ModelConfig, tokens: int) -> int:
    import torch

    layer = {
        "hidden_size": model.hidden_size, "intermediate_size": model.intermediate_size,
        "num_attention_heads": model.num_attention_heads, "rms_norm_eps": 1e-5,
        "num_key_value_heads": model.num_key_value_heads, "head_dim": model.head_size,
        "vocab_size": tokens,
    }  # fmt: skip
    config = {
        "transformer_layer_config": layer, "norm_before_residual": False,
        "eagle_aux_hidden_state_layer_ids": [0, 1],
    }  # fmt: skip
    table = torch.zeros(tokens, model.hidden_size)
    return sum(p.numel() for p in Eagle3Net(config, table, table, None, 0).parameters())


def test_the_states_on_the_disk_have_the_size_that_was_forecast(
    make_run, workspace: Workspace
) -> None:
    schedule = {"epochs": 1, "batch_tokens": 256, "checkpoint_every": 50}
    config = make_run(medusa={"schedule": schedule}, eagle3={"schedule": schedule})
    folder = workspace.engines / "train"
    for made, train in ((medusa_kind, train_medusa), (eagle3_kind, train_eagle3)):
        ahead = dry_run(made(config), config, folder, gpu=None, notify=print)
        assert ahead.amounts.is_exact and not ahead.rejections
        assert ahead.times and (ahead.times.pace.measured or 0) < 60
        before = sum(file.stat().st_size for file in states(folder))
        said: list[str] = []
        result = train(config, workspace, notify=said.append)
        written = sum(file.stat().st_size for file in states(folder)) - before
        assert ahead.needs.disk["hidden states"] == written
        steps = json.loads((result.path / "report.json").read_text())["facts"]["steps"]
        assert ahead.times.steps == pytest.approx(steps, abs=1)
        assert any(line.startswith("disk ") for line in said), "every start shows it"


def states(folder: Path) -> list[Path]:
    return [f for name in ("features-*", "layers-*") for f in (folder / "work").glob(name)]


def test_a_run_that_does_not_fit_is_refused_before_the_target_is_loaded(
    make_run, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specpipe.train.forecast.forecast.memory_bytes", lambda: GIB // 4)
    said: list[str] = []
    with pytest.raises(
        Unsupported, match=r"does not fit:\n  - the training needs .* GiB of memory"
    ):
        train_medusa(make_run(), workspace, notify=said.append)
    assert not any("reading text" in line for line in said)


def test_times_add_up_by_hand() -> None:
    found = sized(Room(None, None))
    pace = Pace(token=1e-3, answer_step=0.1, step=2.0, evaluation=3.0, measured=5.0)
    times = durations(found.train, found.work, found.amounts, pace)
    prompts, batches = 20000, -(-20000 // 64)
    assert times.parts["answers"] == pytest.approx(prompts * 80 * 1e-3 + batches * 512 * 0.1)
    assert times.parts["hidden states"] == pytest.approx(prompts * (80 + 512) * 1e-3)
    assert times.steps == 2 * -(-prompts * 511 * 0.95 // 4096)
    assert times.parts["training"] == times.steps * 2.0


def test_durations_are_spelled_for_people() -> None:
    assert [spelled(s) for s in (4, 600, 12000, 200000)] == ["4 s", "10 min", "3 h 20 min",
                                                             "2 days 7 h"]  # fmt: skip
