"""The endpoint of Triton's `llmapi` model, whose tensors have no batch dimension."""

from dataclasses import replace

from specpipe.core.endpoint import Endpoint, Model, Serving, Tensors
from specpipe.engine.fronts.table import FRONTS
from specpipe.engine.openai_models import openai_endpoint

TOKENIZER = "tensorrt_llm/1/tokenizer"
FRONTS_TOKENIZER = "tokenizer"  # of a front without models of Triton
_PARAMETERS = (
    "temperature",
    "top_k",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)
TENSORS = Tensors(
    prompt="text_input",
    max_tokens="sampling_param_max_tokens",
    stream="streaming",
    exclude_prompt="sampling_param_exclude_input_from_output",
    answer="text_output",
    options={
        **{name: f"sampling_param_{name}" for name in _PARAMETERS},
        "stop_words": "sampling_param_stop",
    },
    flags=("sampling_param_return_perf_metrics",),
    drafted="total_draft_tokens",
    accepted="total_accepted_draft_tokens",
)


def describe(serving: Serving) -> Endpoint:
    """Return the endpoint of a run: one text model; a request cannot change its speculation.

    Another front than Triton has an OpenAI API. Its model is called as its source is.

    Streamed responses carry the whole text so far (`output.text` in the `llmapi` model.py of
    TensorRT-LLM).
    """
    if serving.front in FRONTS:
        owner, speculates = FRONTS[serving.front].owner, serving.method != "none"
        found = openai_endpoint(owner, [serving.model], speculates=speculates)
        return replace(found, tokenizer=FRONTS_TOKENIZER)
    model = Model(
        "tensorrt_llm",
        TENSORS,
        decoupled=serving.streams,
        batched=False,
        cumulative=True,
        speculates=serving.method != "none",
    )
    return Endpoint((model,), tokenizer=TOKENIZER)
