"""The Grafana dashboard: speculation, duration of requests, use of the GPU."""

from dataclasses import dataclass
from typing import Any

from specpipe.deploy.deployment import Deployment

_TEXTS = "TEXTS"  # stands for the models that clients call
_WIDTH, _HEIGHT = 8, 8


@dataclass(frozen=True)
class Panel:
    """One diagram: a title, a unit of Grafana's, and queries by their legends."""

    title: str
    unit: str
    queries: dict[str, str]


def _rate(metric: str, labels: str = "") -> str:
    return f"sum(rate({metric}{{{labels}}}[$__rate_interval]))"


PANELS = (
    Panel(
        "Draft tokens accepted",
        "percentunit",
        {
            "accepted": f"{_rate('specpipe_accepted_draft_tokens_total')} / "
            f"{_rate('specpipe_draft_tokens_total')}"
        },
    ),
    Panel(
        "Tokens a step",
        "none",
        {"tokens": f"{_rate('specpipe_output_tokens_total')} / {_rate('specpipe_steps_total')}"},
    ),
    Panel("Output tokens a second", "none", {"all": _rate("specpipe_output_tokens_total")}),
    Panel(
        "Requests in flight",
        "none",
        {
            "clients'": "sum(specpipe_requests_in_flight)",
            "engine's, {{request_type}}": "sum by (request_type) (nv_trt_llm_request_metrics"
            '{request_type=~"active|waiting"})',
        },
    ),
    Panel(
        "Seconds a request",
        "s",
        {"mean": f"{_rate('specpipe_request_seconds_total')} / {_rate('specpipe_requests_total')}"},
    ),
    Panel(
        "Requests a second",
        "reqps",
        {
            "all": _rate("specpipe_requests_total"),
            "failed, {{reason}}": "sum by (reason) (rate(nv_inference_request_failure"
            f'{{model=~"{_TEXTS}"}}[$__rate_interval]))',
        },
    ),
    Panel(
        "KV cache used",
        "percentunit",
        {
            "{{model}}": "sum by (model) (nv_trt_llm_kv_cache_block_metrics"
            '{kv_cache_block_type="used"}) / sum by (model) (nv_trt_llm_kv_cache_block_metrics'
            '{kv_cache_block_type="max"})'
        },
    ),
    Panel("GPU busy", "percentunit", {"{{gpu_uuid}}": "nv_gpu_utilization"}),
    Panel("GPU memory", "bytes", {"{{gpu_uuid}}": "nv_gpu_memory_used_bytes"}),
)


def dashboard(deployment: Deployment) -> dict[str, Any]:
    """Return the dashboard of one deployment, as Grafana imports it."""
    name, texts = deployment.name, "|".join(deployment.texts)
    return {
        "uid": name[:40],
        "title": f"specpipe: {name.removeprefix('specpipe-')}",
        "tags": ["specpipe", "triton"],
        "timezone": "browser",
        "schemaVersion": 41,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_datasource()]},
        "panels": [_panel(number, panel, texts) for number, panel in enumerate(PANELS)],
    }


def _datasource() -> dict[str, Any]:
    return {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _panel(number: int, panel: Panel, texts: str) -> dict[str, Any]:
    row, column = divmod(number, 3)
    place = {"h": _HEIGHT, "w": _WIDTH, "x": column * _WIDTH, "y": row * _HEIGHT}
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "gridPos": place,
        "datasource": source,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {
                "refId": chr(65 + i),
                "datasource": source,
                "expr": query.replace(_TEXTS, texts),
                "legendFormat": legend,
            }
            for i, (legend, query) in enumerate(panel.queries.items())
        ],
    }
