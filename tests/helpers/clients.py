"""Foreign clients in an environment of their own, which scripts/test-clients makes."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ENVIRONMENT = "SPECPIPE_CLIENTS"
FOLDER = os.environ.get(ENVIRONMENT)
QUICKSTART = Path("model_configs/smollm2-135m_hybrid.yaml")
needs_clients = [
    pytest.mark.clients,
    pytest.mark.skipif(FOLDER is None, reason=f"{ENVIRONMENT} names no environment with clients"),
]


@dataclass(frozen=True)
class Front:
    """A served OpenAI front, and the model behind it."""

    url: str  # without /v1
    model: str
    checkpoint: Path


def clients_folder() -> Path:
    """Return the environment of the foreign clients."""
    return Path(str(FOLDER)).expanduser().absolute()


def run_client(
    command: Sequence[str | Path],
    folder: Path,
    *,
    variables: Mapping[str, str] | None = None,
    seconds: float = 600,
) -> str:
    """Run a client in `folder`; return its stdout.

    The first word is a program of the environment, unless it is a path.
    """
    program = Path(command[0])
    if not program.is_absolute():
        program = clients_folder() / "bin" / program
    done = subprocess.run(
        [program, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=seconds,
        env={**os.environ, **(variables or {})},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout
