"""How a CPU run is served and called."""

from specpipe.endpoint import DraftLimit, Endpoint, Model, Serving
from specpipe.engine.upstream_models import TOKENS, upstream_endpoint


def describe(serving: Serving) -> Endpoint:
    """Return the endpoint of a run.

    `tensorrt_llm` holds the engines and speculates by itself. Only where the text models drive a
    draft and a target it is the target, answers in one piece and never speculates.
    """
    limit = None
    if serving.method != "none":
        limit = DraftLimit("parameter", serving.num_draft_tokens, serving.any_number)
    if serving.loop == "bls" and serving.method == "draft_model":
        tokens = Model("tensorrt_llm", TOKENS, decoupled=False, speculates=False)
    else:
        tokens = Model("tensorrt_llm", TOKENS, speculates=limit is not None, draft_limit=limit)
    return upstream_endpoint(tokens, limit, streams=serving.streams)
