"""Kubernetes manifests as plain records: one file per object, and a kustomization."""

import json
import re
from collections.abc import Mapping
from typing import Any

from specpipe.deploy.dashboard import acceptance, dashboard
from specpipe.deploy.deployment import GRPC, HTTP, METRICS, OPENAI, Deployment
from specpipe.deploy.pods import (
    AS_USER,
    INSTANCE,
    UNPRIVILEGED,
    client_label,
    labels,
    leader_pod,
    membership,
    single_pod,
    worker_pod,
)

Yaml = dict[str, Any]

# What the autoscaler sees, a value a pod: our own gauge. Triton's queue stays empty while engines
# batch in flight, and its request durations end early for models that answer in pieces.
IN_FLIGHT = "specpipe_requests_in_flight"


def manifests(deployment: Deployment) -> Mapping[str, Yaml]:
    """Return every object by the name of its file; all but the loader are for `kubectl apply -k`.

    The loader is a pod that holds the volume open for writing, while the repository is copied.
    """
    workload = leader_worker_set(deployment) if deployment.nodes > 1 else _deployment(deployment)
    objects = {
        "workload.yaml": workload,
        "service.yaml": _service(deployment),
        "volume.yaml": _volume(deployment),
        "network-policy.yaml": _network_policy(deployment),
        "disruption-budget.yaml": _disruption_budget(deployment),
        **_scaling(deployment, workload),
        "pod-monitor.yaml": _pod_monitor(deployment),
        "rules.yaml": _rules(deployment),
        "dashboard.yaml": _dashboard(deployment),
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(objects),
    }
    return {**objects, "kustomization.yaml": kustomization, "loader.yaml": _loader(deployment)}


def _object(version: str, kind: str, deployment: Deployment, spec: Yaml, suffix: str = "") -> Yaml:
    metadata = {"name": f"{deployment.name}{suffix}", "labels": labels(deployment)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def _deployment(deployment: Deployment) -> Yaml:
    spec = {
        "selector": {"matchLabels": labels(deployment)},
        # GPUs are rarely free for a second copy: the old pod goes first.
        "strategy": {"type": "Recreate"} if deployment.gpus else {"type": "RollingUpdate"},
        "progressDeadlineSeconds": deployment.startup_s + 300,
        "template": single_pod(deployment),
    }
    return _object("apps/v1", "Deployment", deployment, spec)


def leader_worker_set(deployment: Deployment) -> Yaml:
    """Return the set whose groups of pods span `deployment.nodes` nodes.

    Pods find each other by a headless service with the set's name, which LeaderWorkerSet makes
    unless there is one (pkg/utils/controller/controller_utils.go); so clients' has another name.
    """
    spec = {
        "startupPolicy": "LeaderCreated",
        "leaderWorkerTemplate": {
            "size": deployment.nodes,
            "restartPolicy": "RecreateGroupOnPodRestart",  # an MPI job does not survive a rank
            "leaderTemplate": leader_pod(deployment),
            "workerTemplate": worker_pod(deployment),
        },
    }
    return _object("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", deployment, spec, "-ranks")


def _service(deployment: Deployment) -> Yaml:
    named = {"http": HTTP, "grpc": GRPC, **({"openai": OPENAI} if deployment.openai else {})}
    ports = [{"name": n, "port": p, "targetPort": n} for n, p in named.items()]
    # Headless: gRPC holds connections open, so clients must see the pods to spread over them.
    spec = {"clusterIP": "None", "selector": labels(deployment), "ports": ports}
    return _object("v1", "Service", deployment, spec)


def _volume(deployment: Deployment) -> Yaml:
    size = f"{max(1, deployment.repository_gib * 5 // 4)}Gi"
    spec: Yaml = {
        "accessModes": [deployment.access_mode],
        "resources": {"requests": {"storage": size}},
    }
    if deployment.storage_class is not None:
        spec["storageClassName"] = deployment.storage_class
    return _object("v1", "PersistentVolumeClaim", deployment, spec, "-models")


def loader_name(deployment: Deployment) -> str:
    """Return the name of the pod that holds the volume open for writing."""
    return f"{deployment.name}-loader"


def _loader(deployment: Deployment) -> Yaml:
    claim = {"claimName": f"{deployment.name}-models"}
    container = {
        "name": "loader",
        "image": "busybox:1.37",
        "command": ["sleep", "infinity"],
        "volumeMounts": [{"name": "models", "mountPath": deployment.repository}],
        "securityContext": UNPRIVILEGED,
    }
    spec = {
        "automountServiceAccountToken": False,
        "securityContext": AS_USER,
        "containers": [container],
        "volumes": [{"name": "models", "persistentVolumeClaim": claim}],
    }
    loader = _object("v1", "Pod", deployment, spec, "-loader")
    loader["metadata"]["labels"] = membership(deployment)  # the service must not find it
    return loader


def _network_policy(deployment: Deployment) -> Yaml:
    """Deny everything but labelled clients of the namespace and the monitoring's Prometheus.

    Nothing goes out, except between the nodes of one server.
    """
    clients = {"podSelector": {"matchLabels": client_label(deployment)}}
    prometheus = {
        "namespaceSelector": {"matchLabels": {_NAMESPACE: deployment.monitoring}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
    }
    front = [{"port": OPENAI}] if deployment.openai else []  # has metrics of its own
    ingress = [
        {"from": [clients], "ports": [{"port": port} for port in _client_ports(deployment)]},
        {"from": [prometheus], "ports": [{"port": METRICS}, *front]},
    ]
    egress: list[Yaml] = []
    own = {"podSelector": {"matchLabels": membership(deployment)}}
    if deployment.nodes > 1:  # ranks meet at ports of their choice, and by name
        ingress.append({"from": [own]})
        egress = [{"to": [own]}, {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53}]}]
    spec = {**own, "policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": egress}
    return _object("networking.k8s.io/v1", "NetworkPolicy", deployment, spec)


def _client_ports(deployment: Deployment) -> list[int]:
    return [HTTP, GRPC, *([OPENAI] if deployment.openai else [])]


_NAMESPACE = "kubernetes.io/metadata.name"  # a label that Kubernetes itself gives namespaces


def _disruption_budget(deployment: Deployment) -> Yaml:
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": labels(deployment)}}
    return _object("policy/v1", "PodDisruptionBudget", deployment, spec)


def _scaling(deployment: Deployment, workload: Yaml) -> dict[str, Yaml]:
    """Return the autoscaler, if more than one pod is possible and specpipe's gauge is exported."""
    if deployment.replicas == 1 or not deployment.has_meters:
        return {}
    return {"autoscaler.yaml": _autoscaler(deployment, workload)}


def _autoscaler(deployment: Deployment, workload: Yaml) -> Yaml:
    target = {
        "apiVersion": workload["apiVersion"],
        "kind": workload["kind"],
        "name": workload["metadata"]["name"],
    }
    busy = {"type": "AverageValue", "averageValue": str(deployment.busy)}
    metric = {"type": "Pods", "pods": {"metric": {"name": IN_FLIGHT}, "target": busy}}
    spec = {
        "scaleTargetRef": target,
        "minReplicas": 1,
        "maxReplicas": deployment.replicas,
        "metrics": [metric],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}},
    }
    return _object("autoscaling/v2", "HorizontalPodAutoscaler", deployment, spec)


def _monitored(version: str, kind: str, deployment: Deployment, spec: Yaml) -> Yaml:
    """Return an object that Prometheus Operator selects, if configured, by the label `release`."""
    made = _object(version, kind, deployment, spec)
    if deployment.monitoring_release is not None:
        made["metadata"]["labels"]["release"] = deployment.monitoring_release
    return made


def _pod_monitor(deployment: Deployment) -> Yaml:
    """Return what has the pods scraped; every series gets the label that queries filter by."""
    ports = ("metrics", *(["openai"] if deployment.openai else []))
    spec = {
        "selector": {"matchLabels": labels(deployment)},
        "podTargetLabels": [INSTANCE],
        "podMetricsEndpoints": [{"port": port, "interval": "10s"} for port in ports],
    }
    return _monitored("monitoring.coreos.com/v1", "PodMonitor", deployment, spec)


def scope(deployment: Deployment) -> str:
    """Return the matcher of PromQL for the series of one deployment."""
    return f'{re.sub("[^a-z]", "_", INSTANCE)}="{deployment.name}"'


def _rules(deployment: Deployment) -> Yaml:
    """Return the alerts: what a person should look at, not what a probe can mend."""
    one = scope(deployment)
    failures = f'sum(rate(nv_inference_request_failure{{{one},reason!="CANCELED"}}[5m]))'
    rules = [
        _alert("SpecpipeRequestsFail", f"{failures} > 0.1", "10m", "critical",
               "More than one request in 10 s fails"),
    ]  # fmt: skip
    if deployment.speculates and deployment.has_meters:
        rules = [_unprofitable(one), _collapsed(one), *rules]
    groups = [{"name": deployment.name, "rules": rules}]
    return _monitored("monitoring.coreos.com/v1", "PrometheusRule", deployment, {"groups": groups})


def _unprofitable(one: str) -> Yaml:
    tokens, steps, drafted = (
        f"sum(rate(specpipe_{what}_total{{{one}}}[30m]))"
        for what in ("output_tokens", "steps", "draft_tokens")
    )
    return _alert(
        "SpecpipeSpeculationDoesNotPay", f"{tokens} / {steps} < 1.1 and {drafted} > 0", "1h",
        "warning",
        "Fewer than 1.1 tokens a step: few draft tokens are accepted, plain decoding is as fast",
    )  # fmt: skip


def _collapsed(one: str) -> Yaml:
    """Return the alert on acceptance below half of what it was the day before.

    A drafter that no longer fits its target looks so: another target, template or kind of prompt.
    """
    now, before = acceptance(one, "30m"), acceptance(one, "1d", "30m")
    drafted = f"sum(rate(specpipe_draft_tokens_total{{{one}}}[30m]))"
    return _alert(
        "SpecpipeAcceptanceCollapsed", f"{now} < 0.5 * ({before}) and {drafted} > 0", "15m",
        "warning", "Less than half of the share of draft tokens is accepted than the day before",
    )  # fmt: skip


def _alert(name: str, expression: str, time: str, severity: str, summary: str) -> Yaml:
    return {
        "alert": name,
        "expr": expression,
        "for": time,
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }


def adapter_values() -> Yaml:
    """Return Helm values of prometheus-adapter that offer the metric to autoscalers."""
    overrides = {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}
    rule = {
        "seriesQuery": f'{IN_FLIGHT}{{namespace!="",pod!=""}}',
        "resources": {"overrides": overrides},
        "metricsQuery": "sum by (<<.GroupBy>>) (<<.Series>>{<<.LabelMatchers>>})",
    }
    return {"rules": {"custom": [rule]}}


def _dashboard(deployment: Deployment) -> Yaml:
    """Return the dashboard as the ConfigMap that Grafana's sidecar looks for."""
    text = json.dumps(dashboard(deployment, scope(deployment)), indent=1)
    made = _object("v1", "ConfigMap", deployment, {}, "-dashboard")
    del made["spec"]
    made["metadata"]["labels"] = {**labels(deployment), "grafana_dashboard": "1"}
    made["data"] = {f"{deployment.name}.json": text}
    return made
