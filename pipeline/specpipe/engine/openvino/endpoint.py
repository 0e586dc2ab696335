"""The endpoint of a CPU run: its models, and how a request limits its drafts."""

from dataclasses import replace

from specpipe.core.endpoint import DraftLimit, Endpoint, Model, Serving
from specpipe.engine.tensorrt.endpoint import describe as describe_engines
from specpipe.engine.upstream_models import TOKENS, upstream_endpoint, with_guides


def describe(serving: Serving) -> Endpoint:
    """Return the endpoint of a run.

    `tensorrt_llm` holds the engines and runs speculative decoding itself; every model accepts a
    limit of draft tokens per request. With `loop: bls` the text models run the draft/target loop
    and `tensorrt_llm` follows the rules of TensorRT-LLM, so clients call the run like one of its
    newest release. In both cases a request can get the logits of its
    prompt; the engine itself also gives log probabilities.
    """
    if serving.loop == "bls":
        endpoint = describe_engines(replace(serving, release=None))
        return replace(endpoint, tokens=_with_prompt_outputs(endpoint.tokens, scores=False))
    limit = None
    if serving.method != "none":
        limit = DraftLimit("parameter", serving.num_draft_tokens, serving.any_number)
    tokens = with_guides(
        Model(
            "tensorrt_llm",
            TOKENS,
            speculates=limit is not None,
            draft_limit=limit,
            fits_max_tokens=True,
            takes_cache_salt=True,
        )
    )
    endpoint = upstream_endpoint(tokens, limit, streams=serving.streams)
    texts = tuple(map(with_guides, endpoint.texts))
    return replace(endpoint, texts=texts, tokens=_with_prompt_outputs(tokens, scores=True))


def _with_prompt_outputs(model: Model | None, *, scores: bool) -> Model | None:
    if model is None:
        return None
    names = replace(
        model.tensors, context_flag="return_context_logits", context_logits="context_logits"
    )
    if scores:
        names = replace(
            names,
            scores_flag="return_prompt_log_probs",
            prompt_log_probs="prompt_log_probs",
            prompt_top_ids="prompt_top_ids",
            prompt_top_log_probs="prompt_top_log_probs",
            tops="num_top_log_probs",
            top_ids="output_top_ids",
            top_log_probs="output_top_log_probs",
        )
    return replace(model, tensors=names)
