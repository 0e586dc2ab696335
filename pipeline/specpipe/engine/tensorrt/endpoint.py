"""The endpoint of a run with TensorRT-LLM engines."""

from dataclasses import replace

from specpipe.core.endpoint import Carrier, DraftLimit, Endpoint, Model, Serving
from specpipe.engine.tensorrt.profiles import profile_of
from specpipe.engine.upstream_models import (
    follows_guides,
    tokens_of,
    upstream_endpoint,
    with_guides,
)

# How a request turns off the speculation of an engine. Request tensors can lower the sizes of
# lookahead. The C++ backend has no such tensors for Medusa, EAGLE and ReDrafter.
_OFF: dict[str, Carrier] = {"lookahead": "lookahead"}


def describe(serving: Serving) -> Endpoint:
    """Return the endpoint of a run.

    With a draft model the text models run the draft/target loop. `tensorrt_llm` is then the target:
    it does not stream and does not speculate. Other engines run speculative decoding themselves.
    Engines without drafts follow guides, which the text models check.
    """
    release = profile_of(serving.release).tensorrt_llm
    tensors = tokens_of(release)
    if serving.method == "draft_model":
        target = Model("tensorrt_llm", tensors, decoupled=False, speculates=False)
        limit = DraftLimit("tensor", serving.num_draft_tokens, any_number=True)
        return upstream_endpoint(target, limit, streams=serving.streams)
    own = None
    if (carrier := _OFF.get(serving.method)) is not None:
        own = DraftLimit(carrier, serving.num_draft_tokens)
    engine = Model(
        "tensorrt_llm",
        tensors,
        decoupled=serving.streams,
        speculates=serving.method != "none",
        draft_limit=own,
    )
    endpoint = upstream_endpoint(engine, own, streams=serving.streams)
    if engine.speculates or not follows_guides(release):
        return endpoint
    return replace(endpoint, texts=tuple(map(with_guides, endpoint.texts)))
