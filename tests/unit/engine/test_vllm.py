"""The `vllm` backend: its arguments, judged by vLLM's own lists, and what it refuses."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from specpipe.core.divisibility import Parallel
from specpipe.engine.backend import BuildRequest
from specpipe.engine.fronts.front import SCRIPT, Cluster
from specpipe.engine.fronts.vllm_serve import LAUNCH, VllmServe
from specpipe.engine.vllm.arguments import serve_command, speculative_config
from specpipe.engine.vllm.backend import VllmBackend
from specpipe.engine.vllm.releases import default_release, releases
from tests.helpers.trtllm_build import request

BACKEND = VllmBackend()
FLAGS = (Path(__file__).parents[2] / "data/vllm_flags_0.32.txt").read_text().split()
DRAFT = "/models/a draft"
CHAIN = {"num_draft_tokens": 3, "tree": ((0,), (0, 0), (0, 0, 0))}
SECTIONS = {
    "prompt_lookup": {"method": "ngram", "prompt_lookup_min": 2, "prompt_lookup_max": 3},
    "suffix": {"method": "suffix", "suffix_decoding_max_tree_depth": 24,
               "suffix_decoding_max_cached_requests": 10000,
               "suffix_decoding_max_spec_factor": 1.0, "suffix_decoding_min_token_prob": 0.1},
    "draft_model": {"method": "draft_model", "model": DRAFT},
    "medusa": {"method": "medusa", "model": DRAFT},
    "eagle": {"method": "eagle", "model": DRAFT},
    "eagle3": {"method": "eagle3", "model": DRAFT},
    "mtp": {"method": "mtp"},
}  # fmt: skip


def asked(method: str = "eagle3", **changes: object) -> BuildRequest:
    sources = {"target": "/models/a target"}
    if "model" in SECTIONS.get(method, {}):
        sources["draft"] = DRAFT
    tree = CHAIN if method in ("medusa", "eagle") else {}
    given = {"front": "vllm_serve", **tree, **changes}
    return request(method=method, draft_nodes=3, sources=sources, **given)


def test_every_method_of_a_release_is_tried() -> None:
    assert set(SECTIONS) == set(default_release().methods)
    assert all(release.source and release.image for release in releases().values())


@pytest.mark.parametrize("method", SECTIONS)
def test_a_method_is_spelt_as_speculative_config_reads_it(method: str) -> None:
    assert BACKEND.check(asked(method)) == []
    assert speculative_config(asked(method)) == {**SECTIONS[method], "num_speculative_tokens": 3}


def test_a_field_that_a_release_lacks_is_no_argument() -> None:
    known = default_release()
    older = replace(known, speculative_fields=known.speculative_fields - {"prompt_lookup_min"})
    with pytest.raises(ValueError, match="vLLM 0.32.0 has no .* prompt_lookup_min"):
        speculative_config(asked("prompt_lookup"), older)


@pytest.mark.parametrize(
    ("few", "ranges"), [(None, None), (8, None), (3, [[1, 3, 3], [4, 8, 0]])]
)  # fmt: skip
def test_a_limit_of_sequences_is_a_schedule(few: int | None, ranges: object) -> None:
    found = speculative_config(asked(max_concurrency=few, max_batch_size=8))
    assert found.get("num_speculative_tokens_per_batch_size") == ranges


@pytest.mark.parametrize("method", ["none", *SECTIONS])
def test_every_flag_is_one_of_vllm(method: str) -> None:
    on_cpu = {"gpu": None, "dtype": "float32"}
    for changes in ({}, on_cpu, {"parallel": Parallel(8, 2), "kv_cache_quantization": "fp8"}):
        front, made = VllmServe(), asked(method, **changes)
        programs = [*front.commands(made, "").values(), *front.node_commands(made).values()]
        for argv in programs:
            assert argv[:3] == ("vllm", "serve", "/models/a target")
            assert [w for w in argv if w.startswith("--") and w not in FLAGS] == []
            assert ("--speculative-config" in argv) == (method != "none")


def test_a_drafts_revision_is_passed_on() -> None:
    made = asked(revisions={"target": "abc", "draft": "def"})
    assert speculative_config(made)["revision"] == "def"
    argv = serve_command(made)
    assert argv[3:7] == ("--revision", "abc", "--tokenizer-revision", "abc")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "lookahead"}, "does not support method lookahead"),
        ({"method": "redrafter"}, "does not support method redrafter"),
        ({"method": "medusa", "tree": ((0,), (1,))}, "it drafts chains"),
        ({"method": "medusa", "tree": "dynamic"}, "it drafts chains"),
        ({"method": "prompt_lookup", "tree": "dynamic"}, "it drafts chains"),
        ({"method": "medusa", "acceptance": "typical"}, "speculation.acceptance: typical"),
        ({"method": "draft_model", "min_confidence": 0.5}, "speculation.min_confidence"),
        ({"method": "prompt_lookup", "draft_length": "adaptive"}, "speculation.draft_length"),
        ({"use_rejection_sampling": True}, "speculation.use_rejection_sampling"),
        ({"release": "1.2.1"}, "engine.tensorrt_llm"),
        ({"quantization": "fp8"}, "does not quantize it to fp8"),
        ({"kv_cache_quantization": "int8"}, "no int8 KV cache"),
        ({"kv_cache_quantization": "fp8", "gpu": None, "dtype": "float32"}, "on a CPU"),
        ({"kv_cache_quantization": "fp8", "sm": 80}, "does not support fp8"),
        ({"dtype": "float32"}, "float32"),
        ({"gpu": None, "dtype": "float32", "parallel": Parallel(1, 2)}, "over pipeline stages"),
        ({"parallel": Parallel(3)}, "3"),
        ({"parallel": Parallel(4, 1, 2)}, "--enable-expert-parallel"),
    ],
)  # fmt: skip
def test_what_vllm_cannot_serve_is_refused(changes: dict[str, object], reason: str) -> None:
    found = BACKEND.check(asked(**changes))
    assert any(reason in r.reason and r.hint for r in found), found


def test_stages_on_a_cpu_are_for_plain_decoding_and_are_compiled() -> None:
    """vLLM's CPU worker makes the buffers between stages only while it compiles."""
    plain = asked("none", gpu=None, dtype="float32", parallel=Parallel(1, 2))
    assert BACKEND.check(plain) == []
    assert "--enforce-eager" not in serve_command(plain)
    assert "--enforce-eager" in serve_command(
        replace(plain, engine=replace(plain.engine, pp_size=1))
    )


def run_script(made: BuildRequest, folder: Path, **variables: str) -> list[str]:
    for name, text in BACKEND.files(made).items():
        (folder / name).write_text(text)
    program = folder / "bin/vllm"
    program.parent.mkdir(exist_ok=True)
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    env = {"PATH": f"{program.parent}:{os.environ['PATH']}", **variables}
    done = subprocess.run(["sh", SCRIPT], cwd=folder, capture_output=True, text=True, env=env)
    return done.stdout.splitlines() if done.returncode == 0 else [done.stderr]


def test_the_script_and_the_launch_start_the_same_server_on_loopback(tmp_path: Path) -> None:
    words = run_script(asked(), tmp_path)
    launch = json.loads((tmp_path / LAUNCH).read_text())
    assert words == [*launch["argv"][1:], "--host", "127.0.0.1", "--port", "8000"]
    assert json.loads(words[words.index("--speculative-config") + 1])["model"] == DRAFT


def test_a_script_of_several_nodes_takes_its_rank_from_its_node(tmp_path: Path) -> None:
    made = asked(parallel=Parallel(8, 2))
    assert LAUNCH not in BACKEND.files(made)
    (missing,) = run_script(made, tmp_path)
    assert "NODE_RANK" in missing
    head = run_script(made, tmp_path, NODE_RANK="0", MASTER_ADDR="10.0.0.1")
    ranks = ["--nnodes", "2", "--node-rank", "0", "--master-addr", "10.0.0.1"]
    assert head[head.index("--nnodes") :][:6] == ranks and "--headless" not in head
    other = run_script(made, tmp_path, NODE_RANK="1", MASTER_ADDR="10.0.0.1")
    assert other[-1] == "--headless" and "--host" not in other


def test_tritons_backend_gets_the_same_arguments(tmp_path: Path) -> None:
    """Names of `AsyncEngineArgs` are those of the flags, with underscores."""
    made = asked(front="triton", parallel=Parallel(2), kv_cache_quantization="fp8")
    assert BACKEND.build(made, tmp_path, tmp_path)["container"] == default_release().image
    values = json.loads((tmp_path / "vllm_model/1/model.json").read_text())
    assert values.pop("speculative_config") == speculative_config(made)
    assert {f"--{name.replace('_', '-')}" for name in values} <= set(FLAGS)
    assert (values["tensor_parallel_size"], values["kv_cache_dtype"]) == (2, "fp8")
    config = (tmp_path / "vllm_model/config.pbtxt").read_text()
    assert "KIND_MODEL" in config and "decoupled: true" in config


def test_a_group_of_nodes_restarts_as_one_and_only_its_leader_answers() -> None:
    cluster = Cluster("x", "image:1", 2, 8, {"a": "b"}, [], [], [], [])
    objects = VllmServe().objects(asked(parallel=Parallel(8, 2)), cluster)
    group, service = objects["workload.yaml"]["spec"], objects["service.yaml"]
    template = group["leaderWorkerTemplate"]
    assert template["size"] == 2 and template["restartPolicy"] == "RecreateGroupOnPodRestart"
    leader, worker = template["leaderTemplate"], template["workerTemplate"]
    assert service["spec"]["selector"].items() <= leader["metadata"]["labels"].items()
    assert not service["spec"]["selector"].items() <= worker["metadata"]["labels"].items()
    assert service["metadata"]["name"] != "vllm"
    (own,) = worker["spec"]["containers"]
    assert own["command"][-1] == "--headless" and "readinessProbe" not in own
    assert "$(LWS_WORKER_INDEX)" in own["command"]
    assert VllmServe().objects(asked(), replace(cluster, nodes=1)) == {}
