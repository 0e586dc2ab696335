"""The fronts by the value of `serving.front`; to add one, write its file and a line here."""

from collections.abc import Iterator, Mapping

from specpipe.core.errors import Rejection
from specpipe.engine.backend import BuildRequest
from specpipe.engine.fronts.dynamo import Dynamo
from specpipe.engine.fronts.front import HttpFront
from specpipe.engine.fronts.trtllm_serve import TrtllmServe
from specpipe.engine.fronts.vllm_serve import VllmServe
from specpipe.engine.tensorrt.profiles import DEFAULT, profile_of

TRITON = "triton"  # which is no front of this table: it serves a model repository
FRONTS: Mapping[str, HttpFront] = {
    front.name: front for front in (TrtllmServe(), Dynamo(), VllmServe())
}


def check_front(request: BuildRequest) -> Iterator[Rejection]:
    """Yield why the front of a request cannot serve its release of TensorRT-LLM."""
    if request.front in FRONTS:
        yield from FRONTS[request.front].check(request)
        return
    profile = profile_of(request.engine.tensorrt_llm)
    if profile.llmapi is not None and not profile.container:
        fronts = " or ".join(name for name in profile.llmapi.fronts if name in FRONTS)
        yield Rejection(
            f"no Triton container has TensorRT-LLM {profile.tensorrt_llm}",
            f"set serving.front: {fronts}, or remove engine.tensorrt_llm to use "
            f"{DEFAULT.tensorrt_llm}",
        )
