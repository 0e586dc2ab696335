"""The packages of the image, each with its version."""

import importlib.metadata
import platform
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from specpipe.core.errors import Unsupported

_CPU_PACKAGES = (
    *("click", "jinja2", "llguidance", "numpy", "nvidia-pytriton", "openvino", "pyyaml"),
    "tokenizers",
)
# NVIDIA's container has everything else that the server needs; what is there stays as it is.
_GPU_PACKAGES = ("grpcio", "python-rapidjson", "tritonclient")
_FRONT_PACKAGES = ("httptools", "starlette", "uvicorn", "uvloop")  # of the OpenAI API


def cpu_image() -> str:
    """Return an image with the Python of this very environment, to the last digit."""
    return f"python:{platform.python_version()}-slim-bookworm"


def requirements(*, gpu: bool, openai: bool = False) -> tuple[str, ...]:
    """Return the packages that the image installs, in the versions of this very environment.

    On CPUs these are all packages, those that others need included, and so are those of the OpenAI
    API on GPUs. Raises Unsupported if one is not installed here.
    """
    front = _FRONT_PACKAGES if openai else ()
    try:
        if gpu:
            names = [*_GPU_PACKAGES, *sorted(set(_closure(front)) - {"click"})]
        else:
            names = sorted(set(_closure((*_CPU_PACKAGES, *front))))
        return tuple(f"{name}=={importlib.metadata.version(name)}" for name in names)
    except importlib.metadata.PackageNotFoundError as error:
        raise Unsupported(
            f"{error.name} is not installed, whose version the image needs",
            hint="in a clone of specpipe: pip install -e '.[cpu]'",
        ) from error


def _closure(roots: tuple[str, ...]) -> Iterator[str]:
    """Yield the packages and everything that they need, optional parts left out."""
    waiting, known = [Requirement(root) for root in roots], set[tuple[str, frozenset[str]]]()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if (name, frozenset(wanted.extras)) in known:
            continue
        known.add((name, frozenset(wanted.extras)))
        yield name
        for line in importlib.metadata.requires(name) or ():
            needed = Requirement(line)
            extras = wanted.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(needed)
