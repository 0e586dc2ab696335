"""GET /metrics: what the front counts, and the metrics of a server that stands in for Triton."""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Iterator
from http.server import BaseHTTPRequestHandler

import click
import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from specpipe.cli import main
from specpipe.cli.options import require_metrics_url
from specpipe.core.endpoint import Endpoint
from specpipe.core.errors import Unavailable
from specpipe.openai.app import Front, FrontOptions
from specpipe.openai.meters import MOST_METRICS_BYTES, TEXT_FORMAT, Metered, Meters, Relay
from specpipe.openai.streaming import DONE
from specpipe.serve.connect import read_text
from tests.helpers.http_servers import listening

TRITONS = '# HELP nv_up Up\n# TYPE nv_up gauge\nnv_up{model="ensemble"} 1\n'
COMMENT = re.compile(r"# (HELP|TYPE) ([a-z_:]+) .+|# .*")
SERIES = re.compile(r'([a-z_:]+)(\{[a-z]+="[^"]*"(?:,[a-z]+="[^"]*")*\})? (-?[0-9.e+]+)')


def parsed(text: str) -> dict[str, float]:
    """Return the series of a text in Prometheus' format; every name must have its type before."""
    assert text.endswith("\n")
    found: dict[str, float] = {}
    typed = set()
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            assert line.split()[2] not in typed, f"two types: {line}"
            typed.add(line.split()[2])
        elif not COMMENT.fullmatch(line):
            match = SERIES.fullmatch(line)
            assert match and match[1] in typed, line
            assert match[1] + (match[2] or "") not in found, f"twice: {line}"
            found[match[1] + (match[2] or "")] = float(match[3])
    return found


@contextlib.contextmanager
def triton(
    body: bytes = TRITONS.encode(),
    status: int = 200,
    kind: str = "text/plain; charset=utf-8",
    repeats: int = 1,
) -> Iterator[tuple[str, list[str]]]:
    """Serve metrics as Triton does; yields their address and the paths that were requested."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            for _ in range(repeats):
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with listening(Handler, clients_leave=True) as port:
        yield f"http://127.0.0.1:{port}/metrics", paths


def front(metrics_url: str | None = None, key: str | None = None) -> TestClient:
    """Return a client of a front whose server is still loading."""

    def absent() -> Endpoint:
        raise Unavailable("the server is loading")

    options = FrontOptions("127.0.0.1:1", "tiny", key, metrics_url=metrics_url)
    return TestClient(Front(options, absent).app())


def test_tritons_metrics_follow_those_of_the_front() -> None:
    with triton() as (url, paths):
        answer = front(url).get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"] == TEXT_FORMAT
    series = parsed(answer.text)
    assert series['nv_up{model="ensemble"}'] == series["specpipe_openai_server_metrics_up"] == 1
    assert series['specpipe_openai_requests_open{route="/v1/chat/completions"}'] == 0
    assert paths == ["/metrics"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": 503},
        {"body": b"<html>", "kind": "text/html"},
        {"body": b"a 1\n" * (MOST_METRICS_BYTES // 4 + 1)},
    ],
)
def test_a_server_without_usable_metrics_leaves_the_fronts(wrong: dict) -> None:
    with triton(**wrong) as (url, _):
        series = parsed(front(url).get("/metrics").text)
    assert series["specpipe_openai_server_metrics_up"] == 0
    assert not any(name.startswith(("nv_", "a")) for name in series)


def test_an_absent_server_leaves_the_fronts_metrics() -> None:
    with triton() as (url, _):
        pass
    assert parsed(front(url).get("/metrics").text)["specpipe_openai_server_metrics_up"] == 0


def test_a_server_that_sends_for_ever_is_given_up() -> None:
    with triton(repeats=2**40) as (url, _):
        assert read_text(url, 0.1, most_bytes=2**50) is None


def test_without_the_address_of_tritons_metrics_a_comment_names_the_option() -> None:
    text = front().get("/metrics").text
    assert "--metrics-url" in text and parsed(text)
    assert "server_metrics_up" not in text


def test_requests_are_counted_by_route_and_status_and_refused_ones_too() -> None:
    client = front(key="sk")
    keyed = {"Authorization": "Bearer sk"}
    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/models/tiny", headers=keyed).status_code == 200
    assert client.get("/v1/models/gpt", headers=keyed).status_code == 404
    for body in ({"model": "tiny", "prompt": "x"}, {"model": "tiny"}):
        client.post("/v1/completions", json=body, headers=keyed)
    for path in ("/v1/embeddings", "/v1/x"):
        client.get(path, headers=keyed)
    client.get("/health")
    series = parsed(client.get("/metrics").text)  # without the key
    ended = {k: v for k, v in series.items() if "_requests_total" in k}
    assert ended == {
        'specpipe_openai_requests_total{route="/v1/models",status="401"}': 1,
        'specpipe_openai_requests_total{route="/v1/models",status="200"}': 1,
        'specpipe_openai_requests_total{route="/v1/models",status="404"}': 1,
        'specpipe_openai_requests_total{route="/v1/completions",status="503"}': 1,
        'specpipe_openai_requests_total{route="/v1/completions",status="400"}': 1,
        'specpipe_openai_requests_total{route="other",status="404"}': 2,
    }


SCOPE = {"type": "http", "path": "/v1/completions"}
START = {"type": "http.response.start", "status": 200}


async def disconnected() -> dict:
    return {"type": "http.disconnect"}


async def nowhere(message: object) -> None:
    pass


def answering(*, before: bool) -> Meters:
    """Answer in two parts; the client's end is read before or after the last."""
    meters = Meters()

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        assert meters.open["/v1/completions"] == 1
        await send(START)
        if before:
            await receive()
        await send({"type": "http.response.body", "body": b"a", "more_body": before})
        if not before:
            await receive()

    asyncio.run(Metered(app, meters)(SCOPE, disconnected, nowhere))
    return meters


def test_a_client_that_disconnects_before_the_end_is_counted_and_no_other() -> None:
    early, late = answering(before=True), answering(before=False)
    assert early.disconnected["/v1/completions"] == 1
    assert late.disconnected["/v1/completions"] == 0
    for meters in (early, late):
        assert meters.ended == {("/v1/completions", 200): 1}
        assert meters.open["/v1/completions"] == 0


@pytest.mark.parametrize(("leaves", "status"), [(True, 499), (False, 500)])
def test_a_request_without_an_answer_has_a_status_too(leaves: bool, status: int) -> None:
    meters = Meters()

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if leaves:
            await receive()
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        asyncio.run(Metered(app, meters)(SCOPE, disconnected, nowhere))
    assert meters.ended == {("/v1/completions", status): 1}


def test_scrapes_at_the_same_time_share_one_read_of_the_server() -> None:
    async def scrape(relay: Relay) -> list[str]:
        return await asyncio.gather(*(relay.text() for _ in range(8)))

    with triton() as (url, paths):
        texts = asyncio.run(scrape(Relay(url)))
    assert len(set(texts)) == 1 and len(paths) == 1


async def chunks_of(*made: str) -> AsyncGenerator[str, None]:
    for chunk in made:
        yield chunk


@pytest.mark.parametrize(("last", "broken"), [(DONE, 0), ('data: {"error": {}}', 1)])
def test_a_stream_that_ends_with_an_error_is_broken(last: str, broken: int) -> None:
    meters = Meters()

    async def read() -> list[str]:
        return [chunk async for chunk in meters.watch(chunks_of("data: a", last), "other")]

    assert asyncio.run(read()) == ["data: a", last]
    assert meters.broken["other"] == broken


def test_a_stream_whose_client_disconnects_is_not_broken_and_is_closed() -> None:
    meters, closed = Meters(), []

    async def endless() -> AsyncGenerator[str, None]:
        try:
            while True:
                yield "data: a"
        finally:
            closed.append("closed")

    async def leave() -> None:
        chunks = meters.watch(endless(), "other")
        await anext(chunks)
        await chunks.aclose()

    asyncio.run(leave())
    assert closed and not meters.broken["other"]


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("http://gpu:8002", "http://gpu:8002/metrics"),
        ("http://[::1]:8002/metrics/", "http://[::1]:8002/metrics"),
        ("https://gpu/prometheus", "https://gpu:443/prometheus"),
    ],
)
def test_the_path_of_metrics_may_be_left_out(given: str, taken: str) -> None:
    context = click.Context(main.commands["openai"])
    assert require_metrics_url(context, context.command.params[0], given) == taken


@pytest.mark.parametrize("given", ["127.0.0.1:8002", "file:///etc/passwd", "http://gpu:8002/?a"])
def test_what_is_no_address_of_metrics_is_refused(given: str) -> None:
    done = CliRunner().invoke(main, ["openai", "--metrics-url", given])
    assert done.exit_code == 2 and "is no address of metrics" in done.output
