"""The fronts without Triton: their files and command lines, judged by upstream's own lists."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from specpipe.config.run_config import ServingOptions
from specpipe.core.divisibility import Parallel
from specpipe.core.endpoint import Serving
from specpipe.engine.backend import BuildRequest
from specpipe.engine.fronts.front import SCRIPT, Cluster
from specpipe.engine.fronts.table import FRONTS
from specpipe.engine.llmapi.backend import LlmApiBackend
from specpipe.engine.llmapi.releases import releases
from tests.helpers.llm_arguments import unknown_fields
from tests.helpers.trtllm_build import request

BACKEND = LlmApiBackend()
KNOWN = json.loads((Path(__file__).parents[2] / "data/front_flags.json").read_text())
MODELS = {"target": "/models/a target", "draft": "/models/draft"}
PAIRS = [(r.name, front) for r in releases().values() for front in r.fronts if front in FRONTS]


def asked(release: str, front: str, **changes: object) -> BuildRequest:
    return request(sources=MODELS, release=release, front=front, draft_nodes=3, **changes)


def test_the_table_has_the_fronts_of_the_config() -> None:
    hints = get_type_hints(ServingOptions)["front"]
    assert set(get_args(hints)) == {"triton", *FRONTS}
    assert all(name == front.name for name, front in FRONTS.items())


@pytest.mark.parametrize(("release", "front"), PAIRS)
def test_upstream_knows_every_argument_of_every_method(release: str, front: str) -> None:
    for method in releases()[release].method_names:
        files = FRONTS[front].files(asked(release, front, method=method))
        (text,) = (text for name, text in files.items() if name.endswith(".yaml"))
        values = yaml.safe_load(text)
        assert unknown_fields(values, release) == []
        assert ("speculative_config" in values) == (method != "none")
        assert "triton_config" not in values and "model" not in values


@pytest.mark.parametrize(("release", "front"), PAIRS)
def test_every_flag_is_one_of_its_program(release: str, front: str) -> None:
    programs = FRONTS[front].commands(asked(release, front, method="eagle3"), "/config")
    for argv in programs.values():
        program = argv[2] if argv[0] == "python3" else argv[0]
        assert [word for word in argv if word.startswith("--") and word not in KNOWN[program]] == []
    assert MODELS["target"] in [word for argv in programs.values() for word in argv]


def test_the_script_starts_the_server_with_its_options(tmp_path: Path) -> None:
    """A path with a space stays one word, and loopback is the default."""
    for name, text in BACKEND.files(asked("1.4.0rc4", "trtllm_serve", method="eagle3")).items():
        (tmp_path / name).write_text(text)
    program = tmp_path / "bin/trtllm-serve"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"; cat "$9" | head -1\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["sh", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={"PATH": f"{program.parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    words = done.stdout.splitlines()
    assert words[0] == "/models/a target" and words[4] == "127.0.0.1"
    assert words[-1] == "dtype: bfloat16"


def graph(nodes: int) -> dict[str, Any]:
    cluster = Cluster("x", "image:1", nodes, 4, {}, [], [], [], [])
    return dict(FRONTS["dynamo"].objects(asked("1.3.0rc29", "dynamo", method="mtp"), cluster))


@pytest.mark.parametrize("nodes", [1, 2])
def test_dynamos_graph_has_the_fields_of_upstreams_examples(nodes: int) -> None:
    (made,) = graph(nodes).values()
    assert made["kind"] == "DynamoGraphDeployment" and set(made["spec"]) <= set(
        KNOWN["graph"]["spec"]
    )
    frontend, worker = made["spec"]["components"]
    for component in (frontend, worker):
        assert set(component) <= set(KNOWN["graph"]["component"])
    assert worker.get("multinode") == ({"nodeCount": 2} if nodes == 2 else None)
    (container,) = worker["podTemplate"]["spec"]["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "4"}}
    assert "multinode" not in frontend


@pytest.mark.parametrize(
    ("release", "front", "reason", "hint"),
    [
        ("1.4.0rc4", "triton", "no Triton container has TensorRT-LLM 1.4.0rc4", "trtllm_serve"),
        ("1.4.0rc4", "dynamo", "no image with TensorRT-LLM 1.4.0rc4 is known for Dynamo",
         "1.3.0rc22, 1.3.0rc29"),
        ("1.1.0", "trtllm_serve", "is known for trtllm-serve", "1.4.0rc4"),
    ],
)  # fmt: skip
def test_a_front_without_the_release_is_refused(
    release: str, front: str, reason: str, hint: str
) -> None:
    found = BACKEND.check(asked(release, front, method="eagle3"))
    assert any(reason in r.reason and hint in r.hint for r in found), found


@pytest.mark.parametrize(("release", "front"), PAIRS)
def test_what_a_front_has_is_not_refused(release: str, front: str) -> None:
    for method in releases()[release].method_names:
        assert BACKEND.check(asked(release, front, method=method)) == []
    assert FRONTS[front].image(release).endswith((release, ":1.4.0", ":1.6.0"))


def test_the_endpoint_is_an_openai_api_whose_speculation_cannot_be_switched() -> None:
    serving = Serving("eagle3", 3, front="trtllm_serve", model="org/model")
    endpoint = BACKEND.endpoint(serving)
    assert endpoint.api == "openai" and endpoint.text.name == "org/model"
    assert not endpoint.text.can_decode_plainly and endpoint.tokens is not None
    plain = BACKEND.endpoint(Serving("none", front="dynamo", model="m"))
    assert plain.text.can_decode_plainly and plain.tokens is None


def test_ranks_are_those_of_the_config() -> None:
    files = BACKEND.files(asked("1.4.0rc4", "trtllm_serve", parallel=Parallel(2, 4)))
    values = yaml.safe_load(files["extra_llm_api_options.yaml"])
    assert (values["tensor_parallel_size"], values["pipeline_parallel_size"]) == (2, 4)
