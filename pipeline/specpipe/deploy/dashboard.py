"""The Grafana dashboard: speculation, duration of requests, use of the GPU."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from specpipe.deploy.deployment import Deployment

_WIDTH, _HEIGHT = 8, 8


@dataclass(frozen=True)
class Panel:
    """One diagram: a title, a unit of Grafana's, and queries by their legends."""

    title: str
    unit: str
    queries: dict[str, str]


def panels(deployment: Deployment, scope: str = "") -> list[Panel]:
    """Return the diagrams of what a deployment exports.

    `scope` is a matcher of PromQL that every query gets: the series of this deployment.
    """
    return [
        *(_speculation(deployment, scope) if drafts_are_counted(deployment) else ()),
        *(_requests(scope) if deployment.has_meters else ()),
        _rates(deployment, scope),
        *(_engine(scope) if deployment.gpus and deployment.has_meters else ()),
        *(_gpu(scope) if deployment.gpus else ()),
    ]


def drafts_are_counted(deployment: Deployment) -> bool:
    """Tell whether a deployment exports how many draft tokens were accepted."""
    return deployment.speculates and deployment.has_meters


def acceptance(scope: str, window: str, offset: str = "") -> str:
    """Return the share of accepted draft tokens over a window that ended `offset` ago."""
    ago = f" offset {offset}" if offset else ""
    over, under = (
        f"sum(rate({_series(f'specpipe_{what}_total', scope)}[{window}]{ago}))"
        for what in ("accepted_draft_tokens", "draft_tokens")
    )
    return f"{over} / {under}"


def _series(metric: str, *matchers: str) -> str:
    return f"{metric}{{{','.join(filter(None, matchers))}}}"


def _rate(metric: str, *matchers: str) -> str:
    return f"sum(rate({_series(metric, *matchers)}[$__rate_interval]))"


def _quotient(over: str, under: str, scope: str) -> str:
    return f"{_rate(f'specpipe_{over}_total', scope)} / {_rate(f'specpipe_{under}_total', scope)}"


def _speculation(deployment: Deployment, scope: str) -> Iterator[Panel]:
    accepted = _quotient("accepted_draft_tokens", "draft_tokens", scope)
    yield Panel("Draft tokens accepted", "percentunit", {"accepted": accepted})
    yield Panel("Tokens a step", "none", {"tokens": _quotient("output_tokens", "steps", scope)})
    change = f"({acceptance(scope, '30m')}) / ({acceptance(scope, '1d', '30m')})"
    yield Panel("Acceptance, compared with the day before", "percentunit", {"30 min": change})
    if not deployment.gpus:
        accepted, drafted = (
            f"sum by (depth) (rate({_series(name, scope)}[$__rate_interval]))"
            for name in ("specpipe_accepted_at_depth_total", "specpipe_drafted_at_depth_total")
        )
        shares = {"depth {{depth}}": f"{accepted} / {drafted}"}
        yield Panel("Draft tokens accepted, by depth", "percentunit", shares)


def _requests(scope: str) -> Iterator[Panel]:
    tokens = _rate("specpipe_output_tokens_total", scope)
    yield Panel("Output tokens a second", "none", {"all": tokens})
    waiting = f"sum({_series('specpipe_requests_in_flight', scope)})"
    yield Panel("Requests in flight", "none", {"clients'": waiting})
    mean = _quotient("request_seconds", "requests", scope)
    yield Panel("Seconds a request", "s", {"mean": mean})


def _rates(deployment: Deployment, scope: str) -> Panel:
    texts = f'model=~"{"|".join(deployment.texts)}"'
    counted = _series("nv_inference_request_failure", texts, scope)
    queries = {"failed, {{reason}}": f"sum by (reason) (rate({counted}[$__rate_interval]))"}
    if deployment.has_meters:
        queries = {"all": _rate("specpipe_requests_total", scope), **queries}
    else:
        queries = {"all": _rate("nv_inference_request_success", texts, scope), **queries}
    return Panel("Requests a second", "reqps", queries)


def _engine(scope: str) -> Iterator[Panel]:
    """Yield what Triton's C++ backend of TensorRT-LLM exports; its llmapi model does not."""
    kinds = _series("nv_trt_llm_request_metrics", 'request_type=~"active|waiting"', scope)
    yield Panel(
        "Requests in the engine", "none", {"{{request_type}}": f"sum by (request_type) ({kinds})"}
    )
    used, most = (
        _series("nv_trt_llm_kv_cache_block_metrics", f'kv_cache_block_type="{kind}"', scope)
        for kind in ("used", "max")
    )
    share = f"sum by (model) ({used}) / sum by (model) ({most})"
    yield Panel("KV cache used", "percentunit", {"{{model}}": share})


def _gpu(scope: str) -> Iterator[Panel]:
    busy = _series("nv_gpu_utilization", scope)
    yield Panel("GPU busy", "percentunit", {"{{gpu_uuid}}": busy})
    memory = _series("nv_gpu_memory_used_bytes", scope)
    yield Panel("GPU memory", "bytes", {"{{gpu_uuid}}": memory})


def dashboard(deployment: Deployment, scope: str = "") -> dict[str, Any]:
    """Return the dashboard of one deployment, as Grafana imports it; see `panels`."""
    name = deployment.name
    return {
        "uid": name[-40:],
        "title": f"specpipe: {deployment.run}",
        "tags": ["specpipe", "triton"],
        "timezone": "browser",
        "schemaVersion": 41,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_datasource()]},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels(deployment, scope))],
    }


def _datasource() -> dict[str, Any]:
    return {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _panel(number: int, panel: Panel) -> dict[str, Any]:
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
            {"refId": chr(65 + i), "datasource": source, "expr": query, "legendFormat": legend}
            for i, (legend, query) in enumerate(panel.queries.items())
        ],
    }
