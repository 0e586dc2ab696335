"""Requirements of TensorRT-LLM's ReDrafter engines for a target: `tensorrt_llm/models/redrafter`.

Taken from the sources of TensorRT-LLM 0.17 and 1.x; nothing here was run on a GPU.
"""

from specpipe.core.errors import Rejection
from specpipe.core.model import redrafter_class
from specpipe.engine.backend import BuildRequest
from specpipe.engine.tensorrt.profiles import DEFAULT

_OTHER_WAYS = "use method: draft_model or lookahead"


def check_redrafter(request: BuildRequest, release: str) -> list[Rejection]:
    """Return every reason why a target with a ReDrafter cannot be an engine of `release`.

    Empty without a drafter in its checkpoint.
    """
    if request.model.redrafter is None:
        return []
    architecture = request.model.architecture
    if redrafter_class(architecture, release) is not None:
        return []
    later = redrafter_class(architecture, DEFAULT.tensorrt_llm) is not None
    return [
        Rejection(
            f"TensorRT-LLM {release} does not support ReDrafter with {architecture}",
            f"remove engine.tensorrt_llm to use {DEFAULT.tensorrt_llm}" if later else _OTHER_WAYS,
        )
    ]
