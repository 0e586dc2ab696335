"""The path of the Unix socket through which the text models of a tritonserver reach the engine.

`specpipe serve` makes the folder, with a random name, and tells the models in their environment.
The models of a tritonserver that was started by hand are all its children; they derive the folder's
name from what no other server shares, in this container or in another with the same temporary
folder. What a killed server leaves is never used again.
"""

import hashlib
import os
import socket
import stat
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

from specpipe.core.errors import ConfigError

FOLDER = "SPECPIPE_SOCKET_FOLDER"  # the variable that names the folder
SERVER_PREFIX = "specpipe-"  # of the folder that `specpipe serve` makes in the temporary one
MOST_PATH_BYTES = 107  # sun_path of sockaddr_un, without the zero at its end
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


def socket_path(folder: Path) -> Path:
    """Return the socket in a folder; raises ConfigError if the kernel cannot take such a path."""
    path = folder / "engine.sock"
    size = len(os.fsencode(path))
    if size > MOST_PATH_BYTES:
        raise ConfigError(
            f"the engine's socket would be {path}, a path of {size} bytes: a Unix socket's has at "
            f"most {MOST_PATH_BYTES}",
            hint="set TMPDIR to a folder with a shorter name",
        )
    return path


def model_socket(server_pid: int, environment: Mapping[str, str]) -> Path:
    """Return the socket of the tritonserver whose model this process runs."""
    given = environment.get(FOLDER)
    if given:
        return socket_path(Path(given))
    name = f"specpipe-{os.geteuid()}-{_identity(server_pid)}"
    return socket_path(Path(tempfile.gettempdir()) / name)


def _identity(pid: int) -> str:
    """Name a running process so that no other ever has the name: not after it, not elsewhere."""
    started = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    facts = (
        Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip(),
        Path("/proc/self/ns/pid").stat().st_ino,  # containers count processes anew
        pid,
        started,
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def make_folder(folder: Path) -> bool:
    """Make a folder that only this user can enter; tell whether it was not there.

    Raises ConfigError if it was, and others can enter it.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        if not ours or stat.S_IMODE(found.st_mode) & 0o077:
            raise ConfigError(
                f"{folder}: the engine's socket needs a folder of user {os.geteuid()} with mode "
                f"0700; this one is of user {found.st_uid} with mode "
                f"{stat.S_IMODE(found.st_mode):04o}",
                hint="remove it, or set TMPDIR to a folder that only you can write to",
            ) from None
        return False
    return True


def peer_uid(connection: socket.socket) -> int:
    """Return the user of the process at the other end of a Unix socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])
