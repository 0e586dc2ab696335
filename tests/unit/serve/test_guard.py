"""What a server demands of its clients, as tritonserver's flags."""

from pathlib import Path

import pytest

from specpipe.core.errors import ConfigError
from specpipe.repository.placement import place
from specpipe.serve.address import Address
from specpipe.serve.guard import ADMIN_APIS, Guard, Tls
from specpipe.serve.launch import launch_command

PEM = "-----BEGIN CERTIFICATE-----\n"


def pem(folder: Path, name: str) -> Path:
    file = folder / name
    file.write_text(PEM)
    return file


def test_administration_needs_a_header_that_no_client_knows() -> None:
    first, second = Guard().flags(), Guard().flags()
    assert [flag.partition("=")[0] for flag in first] == [
        "--grpc-restricted-protocol", "--http-restricted-api",
    ]  # fmt: skip
    assert all(",".join(ADMIN_APIS) + ":specpipe-admin=" in flag for flag in first)
    assert first != second and Guard().secret not in repr(Guard())


def test_every_rank_of_a_gpu_server_is_guarded() -> None:
    flags = [*Address().flags(), *Guard().flags()]
    line = launch_command(
        Path("tritonserver"), Path("/r"), place({"target": 2}, release="1.2.1"), flags, "r"
    )
    assert sum(word.startswith("--grpc-restricted-protocol=") for word in line) == 2


def test_tls_is_for_grpc_and_takes_prompts_off_plain_http(tmp_path: Path) -> None:
    tls = Tls(pem(tmp_path, "tls.crt"), pem(tmp_path, "tls.key"))
    tls.require_files()
    flags = Guard(tls).flags()
    assert "--grpc-use-ssl=true" in flags and f"--grpc-server-key={tls.key}" in flags
    (http,) = (flag for flag in flags if flag.startswith("--http-restricted-api="))
    assert "inference" in http and "health" not in http


def test_clients_must_show_a_certificate_if_an_authority_is_given(tmp_path: Path) -> None:
    files = [pem(tmp_path, name) for name in ("tls.crt", "tls.key", "ca.crt")]
    flags = Guard(Tls(*files)).flags()
    assert "--grpc-use-ssl-mutual=true" in flags and f"--grpc-root-cert={files[2]}" in flags


def test_a_certificate_that_is_none_is_refused_before_the_server_starts(tmp_path: Path) -> None:
    (tmp_path / "tls.crt").write_text("certificate")
    with pytest.raises(ConfigError, match=r"serving.tls.certificate is '.*tls.crt', which is not"):
        Tls(tmp_path / "tls.crt", tmp_path / "tls.key").require_files()
    with pytest.raises(
        ConfigError, match=r"serving.tls.key is '.*', which cannot be read: .*No su"
    ):
        Tls(pem(tmp_path, "tls.crt"), tmp_path / "tls.key").require_files()
