"""What a real tritonserver lets an outsider do, by tritonclient and by plain HTTP."""

import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from click.testing import CliRunner
from tritonclient.utils import InferenceServerException

from specpipe.cli import main
from specpipe.core.errors import Unavailable
from specpipe.serve.address import Address, free_address
from specpipe.serve.client import Client, Options
from specpipe.serve.connect import ClientTls
from specpipe.serve.description import fetch_endpoint
from specpipe.serve.guard import Tls
from specpipe.serve.tritonserver import start_server
from tests.helpers.servers import Served

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """Return a certificate for 127.0.0.1 that signs itself."""
    folder = tmp_path_factory.mktemp("tls")
    tls = Tls(folder / "tls.crt", folder / "tls.key")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
               "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
               "-keyout", str(tls.key), "-out", str(tls.certificate)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return tls


@pytest.fixture(scope="module")
def address(server: Served) -> Address:
    return server.endpoint.address


@pytest.fixture(scope="module")
def secure(
    certificates: Tls, server: Served, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Address]:
    """Return where the same models are served with TLS."""
    log = tmp_path_factory.mktemp("secure") / "server.log"
    repository = server.workspace.repository
    with start_server(repository, free_address(), log, tls=certificates) as running:
        yield running.address


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.register_system_shared_memory("x", "/x", 64),
        lambda c: c.get_system_shared_memory_status(),
        lambda c: c.get_cuda_shared_memory_status(),
        lambda c: c.load_model("x"),
        lambda c: c.get_model_repository_index(),
        lambda c: c.update_trace_settings(settings={"trace_file": "/tmp/x"}),
        lambda c: c.update_log_settings({"log_file": "/tmp/x"}),
    ],
    ids=["register", "memory", "cuda", "load", "index", "trace", "log"],
)
def test_a_client_cannot_administer_the_server(call, address: Address) -> None:
    client = grpc.InferenceServerClient(address.grpc)
    with pytest.raises(InferenceServerException, match="restricted"):
        call(client)
    client.close()


def test_a_client_can_ask_whether_the_server_is_ready(address: Address) -> None:
    client = grpc.InferenceServerClient(address.grpc)
    assert client.is_server_ready() and client.get_server_metadata().name == "triton"
    client.close()


def status(address: Address, path: str, body: bytes | None = None) -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return opener.open(f"http://{address.http}{path}", body, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/systemsharedmemory/status", None),
        ("/v2/cudasharedmemory/status", None),
        ("/v2/repository/index", b"{}"),
        ("/v2/repository/models/x/load", b"{}"),
        ("/v2/trace/setting", None),
        ("/v2/logging", None),
    ],
)
def test_nor_over_http(path: str, body: bytes | None, address: Address) -> None:
    assert status(address, path, body) == 403


def test_tls_encrypts_grpc_and_leaves_only_health_on_http(
    certificates: Tls, secure: Address
) -> None:
    plain = grpc.InferenceServerClient(secure.grpc)
    with pytest.raises(InferenceServerException):
        plain.is_server_ready(client_timeout=5)
    plain.close()
    trusting = grpc.InferenceServerClient(
        secure.grpc, ssl=True, root_certificates=str(certificates.certificate)
    )
    assert trusting.is_server_ready(client_timeout=20)
    trusting.close()
    assert status(secure, "/v2/health/ready") == 200
    asked = b'{"text_input": "hi", "max_tokens": 1}'
    assert status(secure, "/v2/models/ensemble/generate", asked) == 403
    assert status(secure, "/v2/models/ensemble/infer", b"{}") == 403


def test_our_client_and_generate_speak_tls(
    certificates: Tls, secure: Address, server: Served
) -> None:
    options = Options(max_tokens=6)
    with Client(secure.grpc, tls=ClientTls(certificates.certificate)) as client:
        answer = client.generate("The quick", options).text
    assert answer == server.client.generate("The quick", options).text
    words = ["generate", "--url", secure.grpc, "--max-tokens", "6", "--raw", "The quick"]
    trusting = [*words, "--tls-ca", str(certificates.certificate)]
    assert CliRunner().invoke(main, trusting).stdout.rstrip("\n") == answer.rstrip("\n")
    assert CliRunner().invoke(main, words).exit_code == Unavailable.exit_code


def test_a_client_without_a_certificate_is_kept_out_where_one_is_demanded(
    certificates: Tls, server: Served, tmp_path: Path
) -> None:
    mutual = replace(certificates, client_ca=certificates.certificate)
    log, repository = tmp_path / "server.log", server.workspace.repository
    with start_server(repository, free_address(), log, tls=mutual) as running:
        url, ca = running.address.grpc, certificates.certificate
        with pytest.raises(Unavailable):
            fetch_endpoint(url, ClientTls(ca))
        shown = ClientTls(ca, certificates.certificate, certificates.key)
        assert fetch_endpoint(url, shown) == fetch_endpoint(server.url)
