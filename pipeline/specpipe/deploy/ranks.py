"""The program of the pods of a server over several nodes: `python3 -m specpipe.deploy.ranks ROLE`.

`leader SLOTS COMMAND...` writes Open MPI's host file and becomes COMMAND; `worker` becomes the ssh
daemon by which the leader's Open MPI starts the ranks of its node. Both replace this process, so
that signals reach them. No shell is involved: every program gets a list of arguments.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from specpipe.deploy.deployment import SSH

HOSTS = Path("/tmp/hosts")
SECRETS = "/ssh"
ALIAS = "specpipe-ranks"  # the name of every worker in known_hosts: they share a host key
CLIENT_KEY, KNOWN_HOSTS = f"{SECRETS}/id_ed25519", f"{SECRETS}/known_hosts"
HOST_KEY, AUTHORIZED_KEYS = f"{SECRETS}/ssh_host_ed25519_key", f"{SECRETS}/authorized_keys"


def ssh_options() -> list[str]:
    """Return how the leader's ssh proves itself, and which host it takes for a worker."""
    return [
        *("-p", str(SSH), "-i", CLIENT_KEY),
        *("-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"),
        *("-o", f"HostKeyAlias={ALIAS}", "-o", f"UserKnownHostsFile={KNOWN_HOSTS}"),
        *("-o", "GlobalKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=yes"),
    ]


def sshd_command(environment: Mapping[str, str]) -> list[str]:
    """Return the daemon's command line.

    A login has none of the image's environment, in which Open MPI finds its programs and libraries,
    so the daemon is told both paths. Raises ValueError for a path with a quotation mark.
    """
    names = ("PATH", "LD_LIBRARY_PATH")
    paths = [f"{name}={environment[name]}" for name in names if environment.get(name)]
    if any('"' in path for path in paths):
        raise ValueError(f"a path has a quotation mark, which sshd cannot be told: {paths}")
    settings = [
        "PidFile=none",
        "UsePAM=no",
        "StrictModes=no",
        "PasswordAuthentication=no",
        "KbdInteractiveAuthentication=no",
        "PermitRootLogin=no",
        "AllowTcpForwarding=no",
        f"HostKey={HOST_KEY}",
        f"AuthorizedKeysFile={AUTHORIZED_KEYS}",
        *(["SetEnv=" + " ".join(f'"{path}"' for path in paths)] if paths else []),
    ]
    options = [word for setting in settings for word in ("-o", setting)]
    return ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-p", str(SSH), *options]


def host_file(environment: Mapping[str, str], slots: int) -> str:
    """Return Open MPI's host file.

    LeaderWorkerSet names the pods of a group <leader>, <leader>-1, ... and gives their addresses by
    the leader's: LWS_LEADER_ADDRESS is <leader>.<service>.<namespace>.
    """
    leader, _, domain = environment["LWS_LEADER_ADDRESS"].partition(".")
    size = int(environment["LWS_GROUP_SIZE"])
    names = [leader, *(f"{leader}-{number}" for number in range(1, size))]
    return "".join(f"{name}.{domain} slots={slots}\n" for name in names)


def main(arguments: Sequence[str]) -> NoReturn:
    """Become the program of a pod; never returns."""
    role, *rest = arguments
    if role == "leader":
        slots, *command = rest
        HOSTS.write_text(host_file(os.environ, int(slots)), encoding="ascii")
    else:
        command = sshd_command(os.environ)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
