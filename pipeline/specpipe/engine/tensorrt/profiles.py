"""TensorRT-LLM releases as data: matching versions and containers, and supported features.

Engines run only in the release that built them, so a profile also names the container. Sources:
`docs/introduction/compatibility.md` of triton-inference-server/server (26.08) for containers,
TensorRT and CUDA; the release notes. The LLM API of each release is in `llmapi/releases.json`.
Nothing here was run on a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from specpipe.core.errors import Rejection
from specpipe.engine.llmapi.releases import LlmApiRelease, find_release

_IMAGE = "nvcr.io/nvidia/tritonserver:{}-trtllm-python-py3"
_AMPERE_TO_HOPPER = (80, 86, 89, 90)


@dataclass(frozen=True)
class Profile:
    """One release, its container and its features."""

    tensorrt_llm: str
    tensorrt: str
    cuda: str
    tags: tuple[str, ...]  # Triton releases whose containers include it; empty: unknown
    methods: tuple[str, ...]  # methods of its engines; empty: no engines
    sms: tuple[int, ...]  # compute capabilities
    tokens_per_block: int = 32
    gathers_logits_at_runtime: bool = True  # else a flag of `trtllm-build`
    quantizations: tuple[str, ...] = ("none", "int8", "int4", "fp8", "int4_awq", "int8_sq", "nvfp4")
    int4_awq_experts: bool = True

    @property
    def llmapi(self) -> LlmApiRelease | None:
        """The LLM API of the release; None if it is not known."""
        return find_release(self.tensorrt_llm)

    @property
    def llmapi_methods(self) -> tuple[str, ...]:
        """The methods of its LLM API."""
        return self.llmapi.method_names if self.llmapi else ()

    @property
    def container(self) -> str:
        """Return the image to build and serve with; empty if none is known."""
        return _IMAGE.format(self.tags[0]) if self.tags else ""


PROFILES = (
    Profile(
        tensorrt_llm="1.2.1",
        tensorrt="10.14.1.48",
        cuda="13.1",
        tags=("26.04", "26.05", "26.06", "26.07"),
        methods=("none", "draft_model", "medusa", "lookahead", "eagle", "redrafter"),
        sms=(*_AMPERE_TO_HOPPER, 100, 103, 120),
    ),
    Profile(
        tensorrt_llm="0.18.2",
        tensorrt="10.9.0.34",
        cuda="12.8",
        tags=("25.04",),
        # Triton of this release cannot set the sizes of lookahead
        methods=("none", "draft_model", "medusa", "eagle", "redrafter"),
        sms=(*_AMPERE_TO_HOPPER, 100),
        tokens_per_block=64,
        gathers_logits_at_runtime=False,
        # Release notes: 0.17 added nvfp4, and SM 12.0 for some models; both are untested here.
        quantizations=("none", "int8", "int4", "fp8", "int4_awq", "int8_sq"),
        int4_awq_experts=False,  # added in 0.19
    ),
    Profile(
        tensorrt_llm="1.1.0",
        tensorrt="10.13.3.9",
        cuda="13.0",
        tags=("26.02", "26.01", "25.12"),
        methods=(),
        sms=(*_AMPERE_TO_HOPPER, 100, 103, 120),
    ),
    *(
        # No Triton container has these: the last one with the `trtllm` backend is 26.07.
        Profile(
            tensorrt_llm=release,
            tensorrt="",
            cuda="13.1",
            tags=(),
            methods=(),
            sms=(*_AMPERE_TO_HOPPER, 100, 103, 120),
        )
        for release in ("1.4.0rc4", "1.3.0rc29", "1.3.0rc27", "1.3.0rc22")
    ),
)

DEFAULT = PROFILES[0]
ENGINES_END = "1.3.0rc22"  # TensorRT-LLM has no engines from here on, only its PyTorch backend


def find_profile(release: str | None) -> Profile | None:
    """Return the profile of a release, the default one for None; None if there is none."""
    if release is None:
        return DEFAULT
    return next((p for p in PROFILES if p.tensorrt_llm == release), None)


def profile_of(release: str | None) -> Profile:
    """Return the profile of a release; the default profile for an unknown release."""
    return find_profile(release) or DEFAULT


def engine_releases() -> list[str]:
    """Return the releases whose engines specpipe builds."""
    return [p.tensorrt_llm for p in PROFILES if p.methods]


def llmapi_releases() -> list[str]:
    """Return the releases whose LLM API specpipe serves."""
    return [p.tensorrt_llm for p in PROFILES if p.llmapi is not None]


def unknown_release(release: str, supported: Sequence[str]) -> Rejection:
    """Return the refusal of a release without a profile; `supported` by the run's backend."""
    known = ", ".join(supported)
    return Rejection(
        f"engine.tensorrt_llm is {release!r}, a release that specpipe does not know",
        f"known for this backend: {known}; remove the key to use {DEFAULT.tensorrt_llm}",
    )
