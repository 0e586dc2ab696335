"""The flags that limit what clients may do with a tritonserver, and those for encryption.

A tritonserver lets every client register shared memory, load models, and redirect traces and logs.
The advisories of 2025 begin there (CVE-2025-23319, 23320, 23334). tritonserver can demand a header
for an API; its value is drawn anew at every start and is given to nobody.
"""

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from specpipe.core.errors import ConfigError

HEADER = "specpipe-admin"
ADMIN_APIS = ("shared-memory", "model-repository", "trace", "logging")
# tritonserver has no TLS on HTTP, so prompts and answers do not travel there once gRPC has it.
PROMPT_APIS = ("inference", "model-config", "statistics")


@dataclass(frozen=True)
class Tls:
    """Certificates of the gRPC endpoint, PEM files."""

    certificate: Path
    key: Path
    client_ca: Path | None = None  # clients must show a certificate that it signed

    def require_files(self) -> None:
        """Raise ConfigError naming the first file that cannot be read as PEM."""
        for name in ("certificate", "key", "client_ca"):
            file = getattr(self, name)
            if file is not None:
                _require_pem(file, f"serving.tls.{name}")

    def flags(self) -> list[str]:
        """Return tritonserver's flags."""
        files = [f"--grpc-server-cert={self.certificate}", f"--grpc-server-key={self.key}"]
        if self.client_ca is None:
            return ["--grpc-use-ssl=true", *files]
        return ["--grpc-use-ssl-mutual=true", *files, f"--grpc-root-cert={self.client_ca}"]


def _require_pem(file: Path, key: str) -> None:
    try:
        text = file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key} is {str(file)!r}, which cannot be read: {error}") from error
    if "-----BEGIN " not in text:
        raise ConfigError(
            f"{key} is {str(file)!r}, which is not a PEM file",
            hint="a PEM file begins with a line like -----BEGIN CERTIFICATE-----",
        )


@dataclass(frozen=True)
class Guard:
    """What one server demands of its clients."""

    tls: Tls | None = None
    secret: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    def flags(self) -> list[str]:
        """Return tritonserver's flags."""
        http = (*ADMIN_APIS, *PROMPT_APIS) if self.tls else ADMIN_APIS
        return [
            f"--grpc-restricted-protocol={','.join(ADMIN_APIS)}:{HEADER}={self.secret}",
            f"--http-restricted-api={','.join(http)}:{HEADER}={self.secret}",
            *(self.tls.flags() if self.tls else ()),
        ]
