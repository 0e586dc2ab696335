"""Deployments without Triton: golden files, and a packaged run from its config to an answer."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from specpipe.cli import main
from specpipe.core.divisibility import Parallel
from specpipe.deploy.deployment import Deployment
from specpipe.deploy.http_server import HttpServer
from specpipe.deploy.write import http_docker_files, http_kubernetes_files
from specpipe.engine.fronts.table import FRONTS
from tests.helpers.llm_arguments import unknown_fields
from tests.helpers.openai_servers import WORDS, Standin, openai_server
from tests.helpers.trtllm_build import request

GOLDEN = Path(__file__).parents[2] / "golden/deploy"
RELEASES = {"trtllm_serve": "1.4.0rc4", "dynamo": "1.3.0rc29", "vllm_serve": None}


def server(front: str, gpus: int = 1, gpus_per_node: int = 8, target: str = "org/m") -> HttpServer:
    chosen = FRONTS[front]
    asked = request(
        sources={"target": target, "draft": "org/draft"}, method="eagle3", draft_nodes=3,
        release=RELEASES[front], front=front, parallel=Parallel(gpus),
    )  # fmt: skip
    image = chosen.image(RELEASES[front] or "")
    deployment = Deployment(
        run="llama8b", image=image, base=image, gpus=gpus, gpus_per_node=gpus_per_node,
        gpu_product=None, host_memory_gib=32, repository_gib=16, sequences=8, repository="",
        requirements=(), has_meters=False,
    )  # fmt: skip
    return HttpServer(chosen, asked, deployment)


def texts(made: HttpServer) -> dict[str, str]:
    return {**http_docker_files(made), **http_kubernetes_files(made)}


SERVERS = {
    "trtllm-serve": server("trtllm_serve"),
    "dynamo": server("dynamo", gpus=8, gpus_per_node=4),
    "vllm-serve": server("vllm_serve"),
    "vllm-nodes": server("vllm_serve", gpus=8, gpus_per_node=4),
}


@pytest.mark.parametrize("name", SERVERS)
def test_the_files_are_the_golden_ones(name: str) -> None:
    text = "".join(f"==> {file}\n{text}" for file, text in sorted(texts(SERVERS[name]).items()))
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text(), "UPDATE_GOLDEN=1 writes it"


def objects(made: HttpServer) -> dict[str, Any]:
    found = texts(made)
    return {name: yaml.safe_load(text) for name, text in found.items() if name.endswith(".yaml")}


@pytest.mark.parametrize("name", ["trtllm-serve", "dynamo"])
def test_what_a_container_mounts_is_there(name: str) -> None:
    found = objects(SERVERS[name])
    claims = {found["kubernetes/volume.yaml"]["metadata"]["name"]}
    config = found["kubernetes/config.yaml"]
    for pod in pods(found):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            named = [word for word in (*container["command"], *container.get("args", ()))
                     if word.startswith("/config/")]  # fmt: skip
            assert all(word.removeprefix("/config/") in config["data"] for word in named)
        assert volumes["models"]["persistentVolumeClaim"]["claimName"] in claims
        assert volumes["config"]["configMap"]["name"] == config["metadata"]["name"]
    (text,) = config["data"].values()
    release = RELEASES[SERVERS[name].front.name]
    assert unknown_fields(yaml.safe_load(text), release) == []
    assert found["kubernetes/kustomization.yaml"]["resources"] == sorted(
        file.removeprefix("kubernetes/")
        for file in found
        if file.startswith("kubernetes/") and "kustomization" not in file
    )


def pods(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "kubernetes/workload.yaml" in found:
        yield found["kubernetes/workload.yaml"]["spec"]["template"]["spec"]
    for component in found.get("kubernetes/graph.yaml", {}).get("spec", {}).get("components", ()):
        yield component["podTemplate"]["spec"]


def test_vllms_containers_have_no_file_to_read_and_compose_fills_the_rank_in() -> None:
    found = objects(SERVERS["vllm-nodes"])
    assert not [name for name in found if "config" in name or name == "docker/compose.yaml"]
    (head,) = found["docker/compose.head.yaml"]["services"].values()
    (worker,) = found["docker/compose.worker.yaml"]["services"].values()
    assert "${NODE_RANK:?}" in worker["command"] and "0" in head["command"]
    assert head["command"][-4:] == ["--host", "127.0.0.1", "--port", "8000"]
    for service in (head, worker):
        assert service["network_mode"] == "host" and "ports" not in service
        assert {mount["target"] for mount in service["volumes"]} == {"/model-cache"}
        assert not [word for word in service["command"] if word.startswith("$$")]


def test_a_worker_over_several_nodes_has_its_share_of_gpus_on_each() -> None:
    graph = objects(SERVERS["dynamo"])["kubernetes/graph.yaml"]
    worker = graph["spec"]["components"][1]
    (container,) = worker["podTemplate"]["spec"]["containers"]
    assert worker["multinode"] == {"nodeCount": 2}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    assert {"name": "OMPI_ALLOW_RUN_AS_ROOT", "value": "1"} in graph["spec"]["env"]


def test_a_model_that_is_a_folder_is_mounted_where_it_lies() -> None:
    found = objects(server("trtllm_serve", target="/models/my target"))
    (service,) = found["docker/compose.yaml"]["services"].values()
    mount = {"type": "bind", "source": "/models/my target", "target": "/models/my target",
             "read_only": True}  # fmt: skip
    assert mount in service["volumes"] and service["command"][1] == "/models/my target"
    readme = texts(server("trtllm_serve", target="/models/my target"))["kubernetes/README.md"]
    assert "Copy `/models/my target` into the volume" in readme


@pytest.fixture
def packaged(tiny: Path, tmp_path: Path) -> tuple[str, ...]:
    """Return the options of a packaged run of the tiny model for trtllm-serve."""
    values = {
        "name": "api", "target": {"model": str(tiny)},
        "engine": {"backend": "llmapi", "gpu": "H100-SXM", "dtype": "bfloat16", "tp_size": 1,
                   "max_input_len": 100, "max_seq_len": 200, "tensorrt_llm": "1.4.0rc4"},
        "speculation": {"method": "prompt_lookup", "num_draft_tokens": 3},
        "serving": {"front": "trtllm_serve"},
    }  # fmt: skip
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(values))
    return ("--config", str(path), "--workspace", str(tmp_path))


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


@pytest.fixture
def standin() -> Iterator[Standin]:
    with openai_server("trtllm") as found:
        yield found


def test_a_run_is_built_deployed_and_called(
    packaged: tuple[str, ...], standin: Standin, tmp_path: Path
) -> None:
    built = run("build", *packaged)
    assert built.exit_code == 0, built.output
    repository = tmp_path / "triton_repo/api"
    assert (repository / "tokenizer/tokenizer.json").is_file()
    assert {f.name for f in repository.iterdir()} >= {"serve.sh", "extra_llm_api_options.yaml",
                                                      "endpoint.json"}  # fmt: skip
    deployed = run("package", *packaged, "--deploy", "kubernetes", "--json")
    assert deployed.exit_code == 0, deployed.output
    assert (tmp_path / "deploy/api/kubernetes/workload.yaml").is_file()
    assert not (tmp_path / "deploy/api/docker/Dockerfile").exists()
    said = run("generate", *packaged, "--url", standin.url, "--json", "--raw", "hi")
    assert json.loads(said.stdout.splitlines()[0])["text"] == "".join(WORDS)
    refused = run("generate", *packaged, "--url", standin.url, "--num-draft-tokens", "0", "hi")
    assert refused.exit_code == 3 and "no request can change that" in refused.output
    for command in ("serve", "validate"):
        none = run(command, *packaged)
        assert none.exit_code == 3 and "is not served by Triton" in none.output, none.output
        assert "--url http://HOST:8000" in none.output


def test_ranks_over_several_nodes_need_dynamo(packaged: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    values = json.loads(file.read_text())
    values["engine"]["tp_size"] = 2
    file.write_text(json.dumps(values))
    assert run("build", *packaged).exit_code == 0
    refused = run("package", *packaged, "--deploy", "kubernetes", "--gpus-per-node", "1")
    assert refused.exit_code == 3 and "starts its ranks on one node" in refused.output
    assert "set serving.front: dynamo" in refused.output


def test_loads_of_a_running_server_are_measured_and_its_speculation_is_refused(
    packaged: tuple[str, ...], standin: Standin, tmp_path: Path
) -> None:
    _, config, *place = packaged
    (tmp_path / "short.jsonl").write_text('{"prompt": "hi"}\n')
    values = json.loads(Path(config).read_text())
    values["validate"] = {"prompts": str(tmp_path / "short.jsonl"), "num_prompts": 1}
    Path(config).write_text(json.dumps(values))
    assert run("build", *packaged).exit_code == 0
    measured = run("bench", "serving", config, *place, "--url", standin.url, "--clients", "2")
    assert measured.exit_code == 0, measured.output
    assert "| api | - | - | " in measured.stdout and "2 clients: " in measured.stdout
    refused = run("bench", "speculation", config, *place, "--url", standin.url)
    assert refused.exit_code == 3
    assert "no request can turn the speculation of method prompt_lookup off" in refused.stderr
