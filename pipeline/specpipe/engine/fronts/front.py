"""The interface of a front: the server that stands before a model that is served as it is."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from specpipe.core.errors import Rejection
from specpipe.engine.backend import BuildRequest

Yaml = dict[str, Any]
PORT = 8000  # of the OpenAI API, of every front
HEALTH = "/health"
SCRIPT = "serve.sh"  # starts the front on this machine
NODE_VARIABLES = ("NNODES", "NODE_RANK", "MASTER_ADDR")
CONFIG_FOLDER = "/config"  # where the files of a front lie in a container


@dataclass(frozen=True)
class Cluster:
    """What a front's own Kubernetes objects take of the deployment."""

    name: str
    image: str
    nodes: int
    gpus_a_node: int
    labels: Mapping[str, str]
    environment: Sequence[Yaml]
    mounts: Sequence[Yaml]  # of the container
    volumes: Sequence[Yaml]  # of the pod
    secrets: Sequence[Yaml]  # whose entries are environment variables


class HttpFront(Protocol):
    """One kind of server."""

    @property
    def name(self) -> str:
        """The value of `serving.front`."""

    @property
    def owner(self) -> str:
        """What the server calls itself in `owned_by`; see `openai_models.DIALECTS`."""

    @property
    def needs(self) -> str:
        """What a cluster must have for the objects of `objects`."""

    @property
    def entry(self) -> str:
        """How the name of the Service of `objects` ends."""

    @property
    def several_nodes(self) -> bool:
        """Whether the ranks of one model may lie on several nodes."""

    def image(self, release: str) -> str:
        """Return the image that has a release; empty if none is known."""

    def check(self, request: BuildRequest) -> Iterator[Rejection]:
        """Yield every reason why it cannot serve a request."""

    def files(self, request: BuildRequest) -> Mapping[str, str]:
        """Return the files of a run: what the server reads, and a script that starts it."""

    def commands(self, request: BuildRequest, folder: str) -> Mapping[str, Sequence[str]]:
        """Return the programs of one server by their names; its files lie in `folder`.

        The one that answers clients is first; the others use the GPUs, unless it is the only one.
        """

    def node_commands(self, request: BuildRequest) -> Mapping[str, Sequence[str]]:
        """Return the programs of the first of several nodes and of the others, by their names.

        They have the variables of `NODE_VARIABLES`. Empty: only an operator starts several nodes.
        """

    def objects(self, request: BuildRequest, cluster: Cluster) -> Mapping[str, Yaml]:
        """Return the Kubernetes objects that run the server; empty: a plain deployment does."""


def script(lines: Sequence[str]) -> str:
    """Return a shell script that stops at the first error."""
    return "\n".join(["#!/bin/sh", "set -eu", 'cd "$(dirname "$0")"', *lines]) + "\n"


def shell(argv: Sequence[str]) -> str:
    """Return a command line for a script."""
    return shlex.join(argv)
