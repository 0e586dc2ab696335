"""`trtllm-serve`, TensorRT-LLM's own OpenAI server, in its release image.

Its flags are those of `trtllm_serve_cli.yaml`, upstream's reference of the command line (commit
9e7f85f6), and of serve.py of the 1.2 line. Everything else is in the YAML of its LLM API.
"""

from collections.abc import Iterator, Mapping, Sequence

from specpipe.core.errors import Rejection
from specpipe.engine.backend import BuildRequest
from specpipe.engine.fronts.front import PORT, SCRIPT, Cluster, Yaml, script, shell
from specpipe.engine.llmapi.model_yaml import llm_arguments, to_yaml
from specpipe.engine.llmapi.releases import find_release, releases
from specpipe.engine.tensorrt.profiles import profile_of

OPTIONS = "extra_llm_api_options.yaml"
_ON_COMMAND_LINE = ("model", "backend")


class TrtllmServe:
    """See `HttpFront`."""

    name = "trtllm_serve"
    owner = "tensorrt_llm"
    needs = ""
    entry = ""
    several_nodes = False

    def image(self, release: str) -> str:
        """Return NVIDIA's release image."""
        found = find_release(release)
        return found.image if found else ""

    def check(self, request: BuildRequest) -> Iterator[Rejection]:
        """Yield why a release has no trtllm-serve that is known here."""
        yield from check_release(request, self.name, self.name.replace("_", "-"))

    def files(self, request: BuildRequest) -> Mapping[str, str]:
        """Return the options of the LLM API, and a script."""
        (argv,) = self.commands(request, ".").values()
        line = shell(argv).replace("--host 0.0.0.0", '--host "${HOST:-127.0.0.1}"')
        return {OPTIONS: options(request), SCRIPT: script([f"exec {line}"])}

    def commands(self, request: BuildRequest, folder: str) -> Mapping[str, Sequence[str]]:
        """Return the one program."""
        argv = (
            "trtllm-serve", request.sources["target"], "--backend", "pytorch",
            "--host", "0.0.0.0", "--port", str(PORT),
            "--extra_llm_api_options", f"{folder}/{OPTIONS}",
        )  # fmt: skip
        return {self.name: argv}

    def node_commands(self, request: BuildRequest) -> Mapping[str, Sequence[str]]:
        """Return nothing."""
        return {}

    def objects(self, request: BuildRequest, cluster: Cluster) -> Mapping[str, Yaml]:
        """Return nothing: it is a plain server."""
        return {}


def options(request: BuildRequest) -> str:
    """Return the YAML of the LLM API, without what is on the command line."""
    values = llm_arguments(request, profile_of(request.engine.tensorrt_llm))
    return to_yaml({k: v for k, v in values.items() if k not in _ON_COMMAND_LINE})


def check_release(request: BuildRequest, front: str, server: str) -> Iterator[Rejection]:
    """Yield a refusal if the release of a run is not one that the front is known to have."""
    release = profile_of(request.engine.tensorrt_llm).tensorrt_llm
    known = [name for name, found in releases().items() if front in found.fronts]
    if release not in known:
        yield Rejection(
            f"no image with TensorRT-LLM {release} is known for {server} (serving.front: {front})",
            f"set engine.tensorrt_llm to one of {', '.join(known)}",
        )
