"""TensorRT-LLM releases as data: what belongs together, and what each can do.

Engines run only in the release that built them, so a profile names the container as well. Sources:
Triton's compatibility matrix and the packages' metadata. Nothing here was run on a GPU.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """One release and the container that carries it."""

    tensorrt_llm: str
    tensorrt: str
    cuda: str
    container: str
    methods: tuple[str, ...]  # speculation methods that its engines can do
    tokens_per_block: int


PROFILES = (
    Profile(
        tensorrt_llm="1.2.1",
        tensorrt="10.14.1.48",
        cuda="13.1",
        container="nvcr.io/nvidia/tritonserver:26.04-trtllm-python-py3",
        methods=("none", "draft_model", "medusa", "lookahead"),
        tokens_per_block=32,
    ),
    Profile(
        tensorrt_llm="0.18.2",
        tensorrt="10.9.0.34",
        cuda="12.8",
        container="nvcr.io/nvidia/tritonserver:25.04-trtllm-python-py3",
        methods=("none", "draft_model", "medusa", "lookahead"),
        tokens_per_block=64,
    ),
)

DEFAULT = PROFILES[0]
ENGINES_END = "1.3.0rc22"  # from here on upstream has no engines, only its PyTorch backend
