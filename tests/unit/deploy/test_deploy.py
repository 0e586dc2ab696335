"""Deployments: golden files, and what any cluster's administrator would look at first."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest
import yaml

from specpipe.cli import main
from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.deploy import ranks
from specpipe.deploy.dashboard import dashboard, panels
from specpipe.deploy.deployment import Deployment, require_even_nodes, require_pinned
from specpipe.deploy.image import requirements
from specpipe.deploy.kubernetes import IN_FLIGHT, adapter_values, manifests
from specpipe.deploy.stage import DeployOptions, deploy_run
from specpipe.deploy.write import docker_files, kubernetes_files, write_deployment
from specpipe.run.run import Run
from specpipe.run.stages import build

GOLDEN = Path(__file__).parents[2] / "golden/deploy"
MODELS = Path(__file__).parents[3] / "pipeline/specpipe/runtime/triton"

GPU = Deployment(
    run="llama70b_draft7b",
    image="registry.example/llama70b:1",
    base="nvcr.io/nvidia/tritonserver:26.04-trtllm-python-py3",
    gpus=4,
    gpus_per_node=8,
    gpu_product="NVIDIA H100 80GB HBM3",
    host_memory_gib=198,
    repository_gib=145,
    sequences=8,
    repository="/models",
    requirements=("grpcio==1.85.3", "tritonclient==2.73.0"),
)
NODES = dataclasses.replace(GPU, gpus_per_node=2)
CPU = Deployment(
    run="smollm2-135m_none", image="specpipe-smollm2:1", base="python:3.12-slim", gpus=0,
    gpus_per_node=8, gpu_product=None, host_memory_gib=2, repository_gib=1, sequences=4,
    repository="/models", requirements=("numpy==1.26.4", "openvino==2026.4.1"),
    speculates=False,
)  # fmt: skip


FRONT = dataclasses.replace(CPU, openai=True, tokenizer="preprocessing/1/tokenizer")


def texts(deployment: Deployment) -> dict[str, str]:
    return {**docker_files(deployment), **kubernetes_files(deployment)}


@pytest.mark.parametrize(
    ("name", "deployment", "files"),
    [
        ("gpu", GPU, None),
        ("nodes", NODES, ("docker/Dockerfile", "kubernetes/workload.yaml",
                          "kubernetes/network-policy.yaml")),
        ("cpu", CPU, ("docker/Dockerfile", "docker/compose.yaml", "kubernetes/workload.yaml",
                      "kubernetes/rules.yaml")),
        ("openai", FRONT, ("docker/Dockerfile", "docker/compose.yaml", "docker/README.md",
                           "kubernetes/workload.yaml", "kubernetes/service.yaml",
                           "kubernetes/network-policy.yaml", "kubernetes/README.md")),
    ],
)  # fmt: skip
def test_the_files_are_the_golden_ones(name: str, deployment: Deployment, files) -> None:
    wanted = {n: t for n, t in texts(deployment).items() if "dashboard" not in n}
    chosen = files or sorted(wanted)
    text = "".join(f"==> {file}\n{wanted[file]}" for file in chosen)
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text(), "UPDATE_GOLDEN=1 writes it"


@pytest.mark.parametrize("deployment", [GPU, NODES, CPU], ids=["gpu", "nodes", "cpu"])
def test_every_yaml_file_reads_back_as_what_it_was_made_from(deployment: Deployment) -> None:
    objects = manifests(deployment)
    yaml_files = {n: t for n, t in kubernetes_files(deployment).items() if n.endswith(".yaml")}
    for name, text in yaml_files.items():
        made = objects.get(name.removeprefix("kubernetes/"), adapter_values())
        assert yaml.safe_load(text) == made
        assert "&id" not in text and "!!" not in text


@pytest.mark.parametrize("deployment", [GPU, NODES, CPU], ids=["gpu", "nodes", "cpu"])
def test_names_labels_and_volumes_fit_together(deployment: Deployment) -> None:
    objects = manifests(deployment)
    spec = objects["workload.yaml"]["spec"]
    template = spec.get("template") or spec["leaderWorkerTemplate"]["leaderTemplate"]
    chosen = objects["service.yaml"]["spec"]["selector"]
    assert chosen.items() <= template["metadata"]["labels"].items()
    pod = template["spec"]
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    claim = objects["volume.yaml"]["metadata"]["name"]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": claim, "readOnly": True}
    assert set(objects["kustomization.yaml"]["resources"]) == set(objects) - {
        "kustomization.yaml", "loader.yaml",
    }  # fmt: skip
    assert all(re.fullmatch(r"[a-z0-9-]{1,63}", o["metadata"]["name"])
               for n, o in objects.items() if n != "kustomization.yaml")  # fmt: skip
    loader = objects["loader.yaml"]["metadata"]["labels"]
    assert not chosen.items() <= loader.items()  # clients must not be sent there


def test_the_set_of_pods_leaves_its_name_to_the_service_that_they_find_each_other_by() -> None:
    objects = manifests(NODES)
    name = objects["workload.yaml"]["metadata"]["name"]
    assert name != objects["service.yaml"]["metadata"]["name"]
    assert objects["autoscaler.yaml"]["spec"]["scaleTargetRef"]["name"] == name
    longest = manifests(dataclasses.replace(NODES, run="x" * 99))["workload.yaml"]["metadata"]
    assert len(f"{longest['name']}-0-0123456789") <= 63  # the label of a worker's revision


@pytest.mark.parametrize(
    ("gpus", "per_node", "fitting"), [(3, 2, r"\(1\)"), (16, 6, r"\(1, 2, 4\)"), (6, 4, None)]
)
def test_ranks_that_do_not_divide_over_nodes_are_refused_with_numbers_that_fit(
    gpus: int, per_node: int, fitting: str | None
) -> None:
    odd = replace(GPU, gpus=gpus, gpus_per_node=per_node)
    if fitting is None:
        require_even_nodes(odd)
        assert odd.nodes * odd.gpus_a_node == gpus
        return
    with pytest.raises(Unsupported, match=f"{gpus} GPUs do not divide over {odd.nodes} nodes") as e:
        require_even_nodes(odd)
    assert re.search(fitting, e.value.hint or "")


def test_every_run_has_a_name_and_an_image_of_its_own() -> None:
    runs = ["a_b", "a-b", "a.b", "a--b", "A-b", "a-b-", "x" * 60, "x" * 61, "x" * 44, "___", "a"]
    names = [replace(GPU, run=run).name for run in runs]
    assert len(set(names)) == len(runs)
    for run, name in zip(runs, names, strict=True):
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name) and len(name) <= 44, run
        assert require_pinned(f"{name}:0.1.0", "image")
    assert replace(GPU, run="a-b").name == "specpipe-a-b"  # legal names stay as they are


def test_alerts_and_panels_are_of_what_the_deployment_exports() -> None:
    plain, api = replace(GPU, speculates=False), replace(GPU, has_meters=False)

    def alerts(deployment: Deployment) -> list[str]:
        (group,) = manifests(deployment)["rules.yaml"]["spec"]["groups"]
        assert all(rule["labels"]["severity"] in ("warning", "critical") for rule in group["rules"])
        return [rule["alert"] for rule in group["rules"]]

    speculation = ["SpecpipeSpeculationDoesNotPay", "SpecpipeAcceptanceCollapsed"]
    assert alerts(GPU) == [*speculation, "SpecpipeRequestsFail"]
    assert "at_depth" in str(dashboard(replace(CPU, speculates=True))) and "at_depth" not in str(
        dashboard(GPU)
    )
    assert alerts(plain) == alerts(api) == ["SpecpipeRequestsFail"]
    assert "specpipe_draft" not in str(dashboard(plain))
    assert "specpipe_draft" in str(dashboard(GPU))
    assert "specpipe_" not in str(dashboard(api)["panels"])
    assert "nv_gpu" not in str(dashboard(CPU)) and "nv_trt_llm" not in str(dashboard(CPU))
    assert "autoscaler.yaml" not in manifests(api)


def test_every_query_is_of_one_deployment() -> None:
    objects = manifests(GPU)
    monitor = objects["pod-monitor.yaml"]["spec"]
    (label,) = monitor["podTargetLabels"]
    assert objects["workload.yaml"]["spec"]["template"]["metadata"]["labels"][label] == GPU.name
    matcher = f'{re.sub("[^a-z]", "_", label)}="{GPU.name}"'  # as Prometheus spells the label
    made = json.loads(objects["dashboard.yaml"]["data"][f"{GPU.name}.json"])
    queries = [target["expr"] for panel in made["panels"] for target in panel["targets"]]
    (group,) = objects["rules.yaml"]["spec"]["groups"]
    for query in [*queries, *(rule["expr"] for rule in group["rules"])]:
        assert query.count("{") == query.count(matcher), query
    assert GPU.name not in str(dashboard(GPU)["panels"])  # compose has one deployment


def test_a_release_label_a_storage_class_and_an_access_mode_are_handed_on() -> None:
    asked = replace(
        GPU, monitoring_release="prometheus", storage_class="nfs", access_mode="ReadWriteOnce"
    )
    objects = manifests(asked)
    for name in ("pod-monitor.yaml", "rules.yaml"):
        assert objects[name]["metadata"]["labels"]["release"] == "prometheus"
        assert "release" not in manifests(GPU)[name]["metadata"]["labels"]
    volume = objects["volume.yaml"]["spec"]
    assert (volume["accessModes"], volume["storageClassName"]) == (["ReadWriteOnce"], "nfs")
    assert "storageClassName" not in manifests(GPU)["volume.yaml"]["spec"]
    assert "autoscaler.yaml" not in objects  # one pod only can mount the volume
    with pytest.raises(Unsupported, match="--access-mode is ReadWriteOnce"):
        require_even_nodes(replace(NODES, access_mode="ReadWriteOnce"))


def test_pods_spread_over_nodes_and_do_not_change_the_owner_of_every_file() -> None:
    for deployment in (GPU, CPU):
        pod = manifests(deployment)["workload.yaml"]["spec"]["template"]
        (spread,) = pod["spec"]["topologySpreadConstraints"]
        wanted = spread["labelSelector"]["matchLabels"]
        assert wanted.items() <= pod["metadata"]["labels"].items()
        assert pod["spec"]["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


def test_nodes_are_chosen_by_the_label_that_gpu_feature_discovery_gives_them() -> None:
    odd = dataclasses.replace(GPU, gpu_product="NVIDIA  H100 (80GB)")
    pod = manifests(odd)["workload.yaml"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB"}


def test_no_pod_runs_as_root_or_may_write_its_image() -> None:
    for deployment in (GPU, NODES, CPU, FRONT):
        spec = manifests(deployment)["workload.yaml"]["spec"]
        group = spec.get("leaderWorkerTemplate", {})
        for template in filter(None, (spec.get("template"), *map(group.get, _TEMPLATES))):
            pod = template["spec"]
            assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"]
            for container in pod["containers"]:
                assert container["securityContext"]["readOnlyRootFilesystem"]
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


_TEMPLATES = ("leaderTemplate", "workerTemplate")


def test_gpus_are_asked_for_by_node_and_only_where_the_engine_needs_them() -> None:
    def limits(deployment: Deployment) -> dict:
        spec = manifests(deployment)["workload.yaml"]["spec"]
        template = spec.get("template") or spec["leaderWorkerTemplate"]["workerTemplate"]
        return template["spec"]["containers"][0]["resources"]["limits"]

    assert limits(GPU)["nvidia.com/gpu"] == 4 and limits(NODES)["nvidia.com/gpu"] == 2
    assert "nvidia.com/gpu" not in limits(CPU)
    assert manifests(NODES)["workload.yaml"]["kind"] == "LeaderWorkerSet"
    assert manifests(NODES)["workload.yaml"]["spec"]["leaderWorkerTemplate"]["size"] == 2
    compose = yaml.safe_load(docker_files(GPU)["docker/compose.yaml"])
    devices = compose["services"]["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 4, "capabilities": ["gpu"]}]


def test_a_large_model_is_given_time_to_load() -> None:
    pod = manifests(GPU)["workload.yaml"]["spec"]["template"]["spec"]
    probe = pod["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 300 + 145 * 10
    assert str(GPU.startup_s) in GPU.command()


def test_the_autoscaler_watches_a_metric_that_the_server_exports_and_the_adapter_offers() -> None:
    objects = manifests(GPU)
    (metric,) = objects["autoscaler.yaml"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == IN_FLIGHT
    assert metric["pods"]["target"]["averageValue"] == "6"  # of 8 sequences
    assert IN_FLIGHT in adapter_values()["rules"]["custom"][0]["seriesQuery"]
    assert f'"{IN_FLIGHT}"' in (MODELS / "traffic.py").read_text()


LWS = {"LWS_LEADER_ADDRESS": "x-0.x.default", "LWS_GROUP_SIZE": "2"}


def test_the_hosts_of_a_group_are_written_as_open_mpi_reads_them() -> None:
    assert ranks.host_file(LWS, 2) == "x-0.x.default slots=2\nx-0-1.x.default slots=2\n"


ODD = "/models of 'us' $HOME $(id) `id`; \"a\" && b"


def test_the_leader_hands_every_argument_on_as_it_is(tmp_path: Path) -> None:
    """No shell may read a path: the very command line runs, with a program that prints it."""
    odd = dataclasses.replace(NODES, repository=ODD)
    leader = manifests(odd)["workload.yaml"]["spec"]["leaderWorkerTemplate"]["leaderTemplate"]
    command = leader["spec"]["containers"][0]["command"]
    slots = command.index("leader") + 1
    begin = [sys.executable, *command[1 : slots + 1]]
    rest = [word.replace("$$(", "$(") for word in command[slots + 1 :]]  # as Kubernetes reads it
    assert rest == odd.command() and ODD in rest
    code = f"import sys, pathlib; from specpipe.deploy import ranks; \
ranks.HOSTS = pathlib.Path({str(tmp_path / 'hosts')!r}); ranks.main(sys.argv[1:])"
    show = [sys.executable, "-c", "import sys, json; print(json.dumps(sys.argv[1:]))"]
    line = [sys.executable, "-c", code, *begin[3:], *show, *rest]
    found = subprocess.run(line, env={**os.environ, **LWS}, capture_output=True, check=True)
    assert json.loads(found.stdout) == odd.command()
    assert (tmp_path / "hosts").read_text().endswith("x-0-1.x.default slots=2\n")


def test_compose_and_docker_read_an_odd_path_as_it_is() -> None:
    odd = dataclasses.replace(GPU, repository=ODD)
    files = docker_files(odd)
    (volume,) = yaml.safe_load(files["docker/compose.yaml"])["services"]["triton"]["volumes"]
    assert volume["target"].replace("$$", "$") == ODD and "$" not in volume["target"].replace(
        "$$", ""
    )
    last = files["docker/Dockerfile"].splitlines()[-1]
    assert json.loads(last.removeprefix("CMD ")) == odd.command()


def test_ranks_have_a_key_for_every_purpose_and_know_their_hosts() -> None:
    group = manifests(NODES)["workload.yaml"]["spec"]["leaderWorkerTemplate"]
    secrets = {
        name: next(v["secret"] for v in group[name]["spec"]["volumes"] if "secret" in v)
        for name in _TEMPLATES
    }
    assert secrets["leaderTemplate"]["secretName"] == f"{NODES.name}-ssh-client"
    assert secrets["workerTemplate"]["secretName"] == f"{NODES.name}-ssh-host"
    env = {e["name"]: e["value"] for e in group["leaderTemplate"]["spec"]["containers"][0]["env"]}
    told = env["OMPI_MCA_plm_rsh_args"]
    assert "StrictHostKeyChecking=yes" in told and "HostKeyAlias=specpipe-ranks" in told
    daemon = ranks.sshd_command({"PATH": "/a b:/c", "LD_LIBRARY_PATH": "/d"})
    assert 'SetEnv="PATH=/a b:/c" "LD_LIBRARY_PATH=/d"' in daemon
    assert "PasswordAuthentication=no" in daemon
    assert set(told.split()) & {ranks.HOST_KEY, ranks.AUTHORIZED_KEYS} == set()
    with pytest.raises(ValueError, match="quotation mark"):
        ranks.sshd_command({"PATH": '/a"b'})


@pytest.mark.parametrize("deployment", [GPU, NODES, CPU], ids=["gpu", "nodes", "cpu"])
def test_the_network_lets_named_clients_and_one_prometheus_in_and_nobody_else(
    deployment: Deployment,
) -> None:
    objects = manifests(deployment)
    spec = objects["network-policy.yaml"]["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    workload = objects["workload.yaml"]["spec"]
    group = workload.get("leaderWorkerTemplate", {})
    for template in filter(None, (workload.get("template"), *map(group.get, _TEMPLATES))):
        assert spec["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    others = dataclasses.replace(deployment, run="another")
    assert spec["podSelector"] != manifests(others)["network-policy.yaml"]["spec"]["podSelector"]
    peers = [peer for rule in spec["ingress"] for peer in rule["from"]]
    assert all(peer["podSelector"].get("matchLabels") for peer in peers)
    assert {f"client-of.specpipe/{deployment.name}": "true"} in [
        peer["podSelector"]["matchLabels"] for peer in peers
    ]
    (prometheus,) = (peer for peer in peers if "namespaceSelector" in peer)
    assert prometheus["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "monitoring"
    }
    assert all(rule.get("to") or rule["ports"][0]["port"] == 53 for rule in spec["egress"])


def test_the_commands_to_type_have_the_names_of_the_manifests() -> None:
    secure = dataclasses.replace(NODES, certificates={"tls.crt": "a", "tls.key": "b"})
    text, objects = kubernetes_files(secure)["kubernetes/README.md"], manifests(secure)
    group = objects["workload.yaml"]["spec"]["leaderWorkerTemplate"]
    for template in map(group.get, _TEMPLATES):
        for secret in (v["secret"] for v in template["spec"]["volumes"] if "secret" in v):
            assert f"kubectl create secret generic {secret['secretName']} " in text
    assert f" {objects['loader.yaml']['metadata']['name']}:/models" in text
    assert f"`{objects['service.yaml']['metadata']['name']}:8001`" in text
    assert "docker build -t registry.example/llama70b:1 docker" in text
    for name in (ranks.CLIENT_KEY, ranks.KNOWN_HOSTS, ranks.HOST_KEY, ranks.AUTHORIZED_KEYS):
        assert f"--from-file={Path(name).name}" in text


@pytest.mark.parametrize("deployment", [GPU, NODES, CPU], ids=["gpu", "nodes", "cpu"])
def test_whatever_a_container_writes_is_bounded(deployment: Deployment) -> None:
    spec = manifests(deployment)["workload.yaml"]["spec"]
    group = spec.get("leaderWorkerTemplate", {})
    for template in filter(None, (spec.get("template"), *map(group.get, _TEMPLATES))):
        volumes = template["spec"]["volumes"]
        assert all(v["emptyDir"]["sizeLimit"] for v in volumes if "emptyDir" in v)
        limits = template["spec"]["containers"][0]["resources"]["limits"]
        assert {"memory", "ephemeral-storage"} <= set(limits)
    service = yaml.safe_load(docker_files(deployment)["docker/compose.yaml"])["services"]["triton"]
    assert all("size=" in mount for mount in service["tmpfs"])
    assert service["mem_limit"] and service["pids_limit"]


def test_every_image_and_package_is_pinned() -> None:
    for gpu in (True, False):
        assert all(re.fullmatch(r"[\w.-]+==[\w.+!-]+", line) for line in requirements(gpu=gpu))
    names = {line.partition("==")[0] for line in requirements(gpu=False)}
    assert {"openvino", "protobuf", "tritonclient", "grpcio"} <= names  # what others need, too
    assert {"jinja2", "llguidance"} <= names and "starlette" not in names
    for gpu in (True, False):
        fronts = {line.partition("==")[0] for line in requirements(gpu=gpu, openai=True)}
        assert {"starlette", "uvicorn", "h11", "anyio"} <= fronts
    assert not names & {"torch", "transformers", "pytest"}
    for deployment in (GPU, NODES, CPU):
        texts = "\n".join({**docker_files(deployment), **kubernetes_files(deployment)}.values())
        images = re.findall(r"(?:image: |^FROM )(\S+)", texts, re.MULTILINE)
        assert images and [require_pinned(image, "image") for image in images] == images


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("registry.example/llama", "names another image tomorrow"),
        ("llama:latest", "names another image tomorrow"),
        ("llama:1\nRUN id", "not the reference of an image"),
        ("Llama:1", "not the reference of an image"),
        ("llama:1 AS x", "not the reference of an image"),
        ("llama@sha256:12", "not the reference of an image"),
        ("$BASE:1", "not the reference of an image"),
    ],
)
def test_an_image_is_named_by_tag_or_digest(image: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"--base-image is .*{words}"):
        require_pinned(image, "--base-image")
    digest = "localhost:5000/a/b_c@sha256:" + "0" * 64
    assert require_pinned(digest, "--base-image") == digest


def test_certificates_reach_the_server_as_files_of_a_secret_or_a_mount() -> None:
    files = {"tls.crt": "/home/me/a.crt", "tls.key": "/home/me/$a.key", "ca.crt": "/home/me/ca.crt"}
    secure = dataclasses.replace(GPU, certificates=files)
    told = secure.command()
    assert told[-6:] == [
        "--tls-certificate", "/tls/tls.crt", "--tls-key", "/tls/tls.key",
        "--tls-client-ca", "/tls/ca.crt",
    ]  # fmt: skip
    pod = manifests(secure)["workload.yaml"]["spec"]["template"]["spec"]
    (secret,) = (v["secret"] for v in pod["volumes"] if "secret" in v)
    assert secret["secretName"] == f"{GPU.name}-tls"
    compose = yaml.safe_load(docker_files(secure)["docker/compose.yaml"])
    mounts = {v["target"]: v["source"] for v in compose["services"]["triton"]["volumes"]}
    assert mounts["/tls/tls.key"] == "/home/me/$$a.key"
    assert "--tls-certificate" not in GPU.command()


def test_the_dashboard_shows_our_metrics_and_upstreams_under_their_names() -> None:
    shown = panels(GPU)
    queries = " ".join(query for panel in shown for query in panel.queries.values())
    source = "".join((MODELS / name).read_text() for name in ("metrics.py", "traffic.py"))
    for name in re.findall(r"specpipe_(\w+)", queries):
        ours = (f'"specpipe_{name}"', f'"{name.removesuffix("_total")}"')
        assert any(text in source for text in ours), f"{name} is not exported"
    for name in ("nv_trt_llm_kv_cache_block_metrics", "nv_inference_request_failure",
                 "nv_trt_llm_request_metrics", "nv_gpu_utilization"):  # fmt: skip
        assert name in queries
    made = dashboard(GPU)
    places = [tuple(panel["gridPos"].values()) for panel in made["panels"]]
    assert len(set(places)) == len(shown) == len({panel["id"] for panel in made["panels"]})
    assert 'model=~"ensemble|tensorrt_llm_bls"' in str(made)
    assert 'model=~"tensorrt_llm"' in str(dashboard(replace(GPU, texts=("tensorrt_llm",))))


@pytest.mark.slow
def test_writing_twice_gives_the_same_bytes_and_the_image_holds_specpipe(tmp_path: Path) -> None:
    trees = []
    for _ in range(2):
        files = write_deployment(GPU, "kubernetes", tmp_path / "deploy")
        trees.append({file: file.read_bytes() for file in files})
    assert trees[0] == trees[1]
    package = tmp_path / "deploy/docker/specpipe"
    assert (package / "runtime/triton/text.py").is_file()
    assert not list(package.rglob("__pycache__"))


def test_a_deployment_replaces_nothing_of_the_users(tmp_path: Path) -> None:
    write_deployment(GPU, "kubernetes", tmp_path / "d")
    overlay = tmp_path / "d/docker/specpipe/mine.py"
    overlay.write_text("kept")
    with pytest.raises(ConfigError, match=r"did not write: docker/specpipe/mine.py"):
        write_deployment(GPU, "docker", tmp_path / "d")
    assert overlay.read_text() == "kept"
    (tmp_path / "foreign/docker").mkdir(parents=True)
    (tmp_path / "foreign/docker/Dockerfile").write_text("FROM mine")
    with pytest.raises(ConfigError, match="has no specpipe.json"):
        write_deployment(GPU, "docker", tmp_path / "foreign")
    assert (tmp_path / "foreign/docker/Dockerfile").read_text() == "FROM mine"


def test_manifests_stay_when_only_the_compose_file_is_asked_for(tmp_path: Path) -> None:
    write_deployment(GPU, "kubernetes", tmp_path / "d")
    write_deployment(GPU, "docker", tmp_path / "d")
    assert (tmp_path / "d/kubernetes/workload.yaml").is_file()


def test_a_packaged_run_is_deployed_from_the_command_line(write_config, tmp_path: Path) -> None:
    from click.testing import CliRunner

    args = ["--config", str(write_config()), "--workspace", str(tmp_path / "w")]
    build(Run(read_config(write_config()), Workspace(tmp_path / "w", "tiny")))
    result = CliRunner().invoke(main, ["package", *args, "--deploy", "docker", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["fresh"]
    compose = yaml.safe_load((tmp_path / "w/deploy/tiny/docker/compose.yaml").read_text())
    (volume,) = compose["services"]["triton"]["volumes"]
    folder = (tmp_path / "w/deploy/tiny/docker" / volume["source"]).resolve()
    assert folder == Workspace(tmp_path / "w", "tiny").repository
    assert not (tmp_path / "w/deploy/tiny/kubernetes").exists()
    needed = (tmp_path / "w/deploy/tiny/docker/requirements.txt").read_text()
    assert "numpy==1." in needed and "openvino==" in needed and "torch" not in needed
    wrong = CliRunner().invoke(main, ["package", *args, "--deploy", "docker", "--image", "r/tiny"])
    assert wrong.exit_code == 2 and "names another image tomorrow" in wrong.output


@pytest.mark.slow
def test_a_gpu_run_is_deployed_at_the_path_that_its_repository_names(
    write_config, tiny_draft: Path, gpu_machine: Path, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STANDIN_GPUS", "\n".join(["NVIDIA H100 80GB HBM3, 9.0, 81559, 580.1"] * 2))
    engine = {"backend": "tensorrt", "gpu": "H100-SXM", "dtype": "bfloat16", "max_batch_size": 2,
              "max_input_len": 100, "max_seq_len": 200, "tp_size": 2}  # fmt: skip
    speculation = {"method": "draft_model", "draft": {"model": str(tiny_draft)}}
    config = read_config(write_config(engine=engine, speculation=speculation))
    place = Workspace(tmp_path / "w", "tiny")
    build(Run(config, place))
    (warning,) = deploy_run(Run(config, place), "kubernetes", DeployOptions()).warnings
    assert "no registry has the image specpipe-tiny:" in warning and "--image" in warning
    workload = yaml.safe_load((place.deployment / "kubernetes/workload.yaml").read_text())
    pod = workload["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    seen = pod["containers"][0]["volumeMounts"][0]["mountPath"]
    engines = (place.repository / "tensorrt_llm/config.pbtxt").read_text()
    assert f'"{seen}/tensorrt_llm/1/' in engines
    dockerfile = (place.deployment / "docker/Dockerfile").read_text()
    assert dockerfile.startswith("FROM nvcr.io/nvidia/tritonserver:26.04-trtllm-python-py3\n")
    with pytest.raises(Unsupported, match="2 GPUs span 2 nodes of 1"):
        deploy_run(Run(config, place), "kubernetes", DeployOptions(gpus_per_node=1))


def test_what_is_not_packaged_cannot_be_deployed(write_config, tmp_path: Path) -> None:
    config = read_config(write_config())
    with pytest.raises(ConfigError, match="not built yet"):
        deploy_run(Run(config, Workspace(tmp_path / "w", "tiny")), "docker", DeployOptions())


def test_serving_a_repository_needs_no_more_than_the_image_has() -> None:
    absent = ("torch", "transformers", "safetensors")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "import specpipe.serve.tritonserver, specpipe.runtime.assembly, specpipe.cli.serve\n"
        "import specpipe.runtime.scheduler, specpipe.runtime.tokens\n"
        "import specpipe.engine.openvino.backend, specpipe.openai.server, specpipe.cli.openai\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("tokens", "steps", "drafted", "fires"),
    [
        (100.0, 100.0, 0.0, False),  # method: none, or more sequences than max_concurrency
        (101.0, 100.0, 400.0, True),
        (190.0, 100.0, 400.0, False),
        (0.0, 0.0, 0.0, False),  # nobody asks: 0 / 0 is not a number, which is below nothing
    ],
)
def test_the_alert_on_speculation_fires_only_where_tokens_are_drafted(
    tokens: float, steps: float, drafted: float, fires: bool
) -> None:
    (group,) = manifests(replace(CPU, speculates=True))["rules.yaml"]["spec"]["groups"]
    (rule,) = [r for r in group["rules"] if r["alert"] == "SpecpipeSpeculationDoesNotPay"]
    rates = {"output_tokens": tokens, "steps": steps, "draft_tokens": drafted}
    query = re.sub(
        r"sum\(rate\(specpipe_(\w+)_total\{[^}]*\}\[30m\]\)\)",
        lambda found: repr(rates[found[1]]),
        rule["expr"],
    )
    quotient, rest = query.split(" < ", 1)
    over, under = map(float, quotient.split(" / "))
    bound, _, condition = rest.partition(" and ")
    low = under > 0 and over / under < float(bound)
    more, _, least = condition.partition(" > ")
    assert (low and float(more) > float(least)) is fires


@pytest.mark.parametrize(
    ("accepted", "before", "fires"), [(2.0, 5.0, True), (3.0, 5.0, False), (0.0, 0.0, False)]
)
def test_the_alert_on_a_collapse_compares_with_the_day_before(
    accepted: float, before: float, fires: bool
) -> None:
    (group,) = manifests(replace(CPU, speculates=True))["rules.yaml"]["spec"]["groups"]
    (rule,) = [r for r in group["rules"] if r["alert"] == "SpecpipeAcceptanceCollapsed"]
    rates = {
        ("accepted_draft_tokens", "30m"): accepted, ("draft_tokens", "30m"): 10.0,
        ("accepted_draft_tokens", "1d"): before, ("draft_tokens", "1d"): 10.0,
    }  # fmt: skip
    rate = r"sum\(rate\(specpipe_(\w+)_total\{[^}]*\}\[(\w+)\](?: offset 30m)?\)\)"
    query = re.sub(rate, lambda found: repr(rates[found[1], found[2]]), rule["expr"])
    assert eval(query) is fires  # these operators mean the same in Python
    assert "offset 30m" in rule["expr"]


@pytest.mark.parametrize("nodes", [FRONT, dataclasses.replace(NODES, openai=True)])
def test_the_openai_api_is_a_container_that_calls_the_server_next_to_it(nodes: Deployment) -> None:
    objects = manifests(nodes)
    spec = objects["workload.yaml"]["spec"]
    group = spec.get("leaderWorkerTemplate", {})
    pod = (spec.get("template") or group["leaderTemplate"])["spec"]
    server, front = pod["containers"]
    assert "127.0.0.1:8001" in front["command"] and server["name"] == "triton"
    assert front["volumeMounts"][0] in server["volumeMounts"]
    assert front["ports"] == [{"name": "openai", "containerPort": 9000}]
    ports = [port["targetPort"] for port in objects["service.yaml"]["spec"]["ports"]]
    assert ports == ["http", "grpc", "openai"]
    clients, prometheus = objects["network-policy.yaml"]["spec"]["ingress"][:2]
    assert {"port": 9000} in clients["ports"] and {"port": 9000} in prometheus["ports"]
    scraped = objects["pod-monitor.yaml"]["spec"]["podMetricsEndpoints"]
    assert [endpoint["port"] for endpoint in scraped] == ["metrics", "openai"]
    assert "--metrics-url" not in front["command"]  # clients may not read the server's metrics
    if group:
        assert len(group["workerTemplate"]["spec"]["containers"]) == 1


def test_the_command_of_the_openai_container_is_one_that_specpipe_takes() -> None:
    service = yaml.safe_load(docker_files(FRONT)["docker/compose.yaml"])["services"]["openai"]
    _, _, name, verb, *options = service["command"]
    assert (name, verb) == ("specpipe", "openai") and "triton:8001" in options
    # A command remembers its help option, so it must see the settings of its group here too.
    group = click.Context(main, info_name="specpipe", **main.context_settings)
    command = main.commands["openai"]
    context = command.make_context("openai", options[:-2], parent=group)  # without the folder
    assert context.params["port"] == 9000 and context.params["served_model_name"] == FRONT.run


def test_the_openai_api_before_an_encrypted_server_is_refused(write_config, tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("x")
    tls = {"certificate": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    config = read_config(write_config(serving={"openai": True, "tls": tls}))
    place = Workspace(tmp_path / "w", "tiny")
    build(Run(config, place))
    with pytest.raises(Unsupported, match="serving.openai with serving.tls"):
        deploy_run(Run(config, place), "docker", DeployOptions())
