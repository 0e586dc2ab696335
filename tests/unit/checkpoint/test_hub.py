"""Models on the hub: plans fetch no weights, builds what they need, and only once."""

import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from specpipe.cli import main
from tests.helpers.hub import Hub, Repo, serve_hub
from tests.helpers.models import make_llama

MODEL = "acme/tiny"
DUPLICATES = ("pytorch_model.bin", "model.gguf", "onnx/model.onnx", "original/consolidated.00.pt",
              "README.md", "training_args.bin")  # fmt: skip
WEIGHTS = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def sharded(folder: Path) -> dict[str, bytes]:
    """Return a model's files with its weights in two shards, and what else repositories hold."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    files = {n: d for n, d in files_of(folder).items() if n != "model.safetensors"}
    weight_map = {}
    for shard, part in zip(sorted(WEIGHTS), (names[::2], names[1::2]), strict=True):
        save_file({n: tensors[n] for n in part}, folder / "part", {"format": "pt"})
        files[shard] = (folder / "part").read_bytes()
        weight_map |= dict.fromkeys(part, shard)
    (folder / "part").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    return {**files, **dict.fromkeys(DUPLICATES, b"not asked for")}


@pytest.fixture(scope="session")
def files(tiny: Path) -> dict[str, bytes]:
    """Return the tiny model as a repository holds it."""
    return sharded(tiny)


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """Serve the tiny model as acme/tiny."""
    repo = Repo()
    repo.commit(files)
    with serve_hub({MODEL: repo}) as hub:
        yield hub


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """Return the variables of a user of this hub, with an empty cache."""
    return {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
    }  # fmt: skip


@pytest.fixture
def specpipe(environment: dict[str, str], tmp_path: Path, write_config) -> Run:
    """Return a function that runs a command on a config whose target is a model of the hub."""

    def run(*command: str, model: str = MODEL, revision: str | None = None, **env: str) -> Done:
        target = {"model": model, **({"revision": revision} if revision else {})}
        config = str(write_config(target=target))
        place = ("--config", config, "--workspace", str(tmp_path / "work"))
        return run_in_child([*command, *place], {**environment, **env})

    return run


def run_in_child(command: list[str], environment: dict[str, str]) -> Done:
    """Run a command in a process that has this environment from the start, for all that
    huggingface_hub can tell: it reads the environment once, when it is imported.
    """
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child() -> None:
        for name in [n for n in sys.modules if n.partition(".")[0] == "huggingface_hub"]:
            del sys.modules[name]
        os.environ.update(environment)
        result = CliRunner().invoke(main, command)
        answers.put((result.exit_code, result.stdout, result.stderr))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the hub's thread is not in the child
        process = context.Process(target=child)
        process.start()
    done = Done(*answers.get())
    process.join()
    return done


def succeeded(done: Done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_plan_fetches_no_weights_and_says_what_a_build_will_fetch(
    hub: Hub, files: dict[str, bytes], specpipe: Run
) -> None:
    plan = succeeded(specpipe("plan", "--json"))
    assert not WEIGHTS & set(hub.sent) and not set(DUPLICATES) & set(hub.sent)
    assert {"config.json", "tokenizer.json", "generation_config.json"} <= set(hub.sent)
    assert plan["downloads"]["target"] == {
        "model": MODEL,
        "commit": hub.repos[MODEL].branches["main"],
        "files": {name: len(files[name]) for name in sorted(WEIGHTS)},
    }


@pytest.mark.slow
def test_status_doctor_and_serve_fetch_no_weights(hub: Hub, specpipe: Run) -> None:
    assert succeeded(specpipe("status", "--json"))[0]["reason"] == "no earlier output"
    specpipe("doctor")
    for command in ("serve", "validate"):
        refused = specpipe(command)
        assert refused.returncode == 2 and "run `specpipe build" in refused.stderr
    assert not WEIGHTS & set(hub.sent)


@pytest.mark.slow
def test_a_build_fetches_what_it_needs_once_and_later_ones_nothing(
    hub: Hub, specpipe: Run, tmp_path: Path, write_config, tiny: Path
) -> None:
    first = specpipe("convert", "--json")
    succeeded(first)
    assert "fetching acme/tiny at" in first.stderr and "2 files" in first.stderr
    assert set(hub.sent) >= WEIGHTS and not set(DUPLICATES) & set(hub.sent)
    assert len(hub.sent) == len(set(hub.sent)), "no file twice"
    manifest = json.loads(
        (tmp_path / "work/engines/tiny/checkpoints/target/specpipe.json").read_text()
    )
    commit = hub.repos[MODEL].branches["main"]
    assert manifest["facts"] == {"model": MODEL, "commit": commit}
    hub.forget()
    assert succeeded(specpipe("convert", "--json"))[0]["fresh"] and "fetching" not in first.stdout
    assert hub.requests == [], "what is in the cache is not asked for again"
    assert succeeded(specpipe("convert", "--json", HF_HUB_OFFLINE="1"))[0]["fresh"]


@pytest.mark.slow
def test_weights_that_were_converted_are_not_fetched_again_when_the_cache_is_emptied(
    hub: Hub, specpipe: Run, tmp_path: Path
) -> None:
    succeeded(specpipe("convert", "--json"))
    (tmp_path / "home").rename(tmp_path / "old")
    hub.forget()
    assert succeeded(specpipe("convert", "--json"))[0]["fresh"]
    assert not WEIGHTS & set(hub.sent)


@pytest.mark.slow
def test_a_moved_branch_is_noticed_only_by_fetching_it_and_a_commit_never_moves(
    hub: Hub, files: dict[str, bytes], specpipe: Run, tmp_path: Path
) -> None:
    repo = hub.repos[MODEL]
    old = repo.branches["main"]
    succeeded(specpipe("convert", "--json"))
    other = make_llama(tmp_path / "other", seed=7)
    new = repo.commit(sharded(other))
    hub.forget()
    assert succeeded(specpipe("convert", "--json"))[0]["fresh"] and hub.requests == []
    assert not succeeded(specpipe("convert", "--json", revision=new))[0]["fresh"]
    manifest = tmp_path / "work/engines/tiny/checkpoints/target/specpipe.json"
    assert json.loads(manifest.read_text())["facts"]["commit"] == new
    assert succeeded(specpipe("plan", "--json", revision=old))["downloads"] == {}, (
        "still in the cache"
    )


def test_a_branch_of_another_name_is_taken(hub: Hub, specpipe: Run, tmp_path: Path) -> None:
    commit = hub.repos[MODEL].commit(sharded(make_llama(tmp_path / "dev", seed=3)), "refs/pr/1")
    plan = succeeded(specpipe("plan", "--json", revision="refs/pr/1"))
    assert plan["downloads"]["target"]["commit"] == commit


@pytest.mark.slow
def test_offline_is_a_sentence_before_and_no_obstacle_after_fetching(
    hub: Hub, specpipe: Run
) -> None:
    before = specpipe("plan", HF_HUB_OFFLINE="1")
    assert before.returncode == 2 and "HF_HUB_OFFLINE is set\n  hint: " in before.stderr
    succeeded(specpipe("plan", "--json"))
    plan = succeeded(specpipe("plan", "--json", HF_HUB_OFFLINE="1"))
    assert set(plan["downloads"]["target"]["files"]) == WEIGHTS
    build = specpipe("convert", HF_HUB_OFFLINE="1")
    assert build.returncode == 2 and "HF_HUB_OFFLINE is set" in build.stderr
    assert not WEIGHTS & set(hub.sent)


def test_a_hub_that_cannot_be_reached_is_a_sentence(specpipe: Run) -> None:
    done = specpipe("plan", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2
    assert "http://127.0.0.1:9 cannot be reached\n  hint: check the network" in done.stderr


REFUSED = {
    "acme/b..ad": "no such folder or file\n  hint: give a folder",
    "acme/broken": "refused the download: ",
    "acme/nothing": "has no such model or it is private, and no such folder exists here\n  hint",
    "acme/tiny@v9": "has the model, but not this revision\n  hint: give a branch",
    "acme/gated": "accepted its conditions\n  hint: accept them on its page, then set HF_TOKEN",
    "acme/empty": "has the model, but the model has no config.json\n  hint: give the id of a model",
    "acme/pickles": "has no safetensors at",
    "acme/evil": "is '../../../evil.safetensors', which is no name in this folder",
}


@pytest.mark.slow
def test_what_the_hub_refuses_is_one_sentence_each(
    hub: Hub, files: dict[str, bytes], specpipe: Run
) -> None:
    small = {n: d for n, d in files.items() if "safetensors" not in n}
    evil = json.dumps({"weight_map": {"a": "../../../evil.safetensors"}}).encode()
    hub.repos |= {
        "acme/gated": Repo(token="secret", refusal=(403, "GatedRepo")),
        "acme/broken": Repo(token="secret", refusal=(400, "Oops")),
        "acme/empty": Repo(),
        "acme/pickles": Repo(),
        "acme/evil": Repo(),
    }
    hub.repos["acme/empty"].commit({"README.md": b"?"})
    hub.repos["acme/pickles"].commit(small)
    hub.repos["acme/evil"].commit({**small, "model.safetensors.index.json": evil})
    for name, words in REFUSED.items():
        model, _, revision = name.partition("@")
        done = specpipe("plan", model=model, revision=revision or None)
        assert done.returncode == 2 and words in done.stderr
        assert len(done.stderr.splitlines()) == 2, "a sentence and a hint"
        assert model in done.stderr or model.replace("/", "--") in done.stderr


@pytest.mark.slow
def test_a_token_opens_what_is_private(hub: Hub, specpipe: Run) -> None:
    hub.repos[MODEL].token = "secret"
    assert specpipe("plan").returncode == 2
    succeeded(specpipe("plan", "--json", HF_TOKEN="secret"))


def test_a_revision_is_for_models_of_the_hub(specpipe: Run, tiny: Path) -> None:
    done = specpipe("plan", model=str(tiny), revision="main")
    assert done.returncode == 2 and "'target.revision' is 'main', but" in done.stderr


def test_an_adapter_on_the_hub_is_named(hub: Hub, specpipe: Run) -> None:
    repo = Repo()
    repo.commit({"adapter_config.json": b"{}", "adapter_model.safetensors": b"", "README.md": b""})
    hub.repos["acme/adapter"] = repo
    refused = specpipe("plan", model="acme/adapter")
    assert refused.returncode == 2 and "acme/adapter is a PEFT adapter" in refused.stderr


def test_a_single_file_on_the_hub_is_fetched_rather_than_shards(
    hub: Hub, files: dict[str, bytes], specpipe: Run, tiny: Path
) -> None:
    whole = (tiny / "model.safetensors").read_bytes()
    hub.repos[MODEL].commit({**files, "model.safetensors": whole})
    plan = succeeded(specpipe("plan", "--json"))
    assert list(plan["downloads"]["target"]["files"]) == ["model.safetensors"]
