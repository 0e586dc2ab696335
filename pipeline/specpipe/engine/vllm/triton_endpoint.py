"""The endpoint of Triton's `vllm` backend, whose tensors have no batch dimension.

The tensors are those of `GenerateRequest` (src/utils/request.py of
triton-inference-server/vllm_backend). Options are one JSON text, whose keys are those of vLLM's
`SamplingParams`; an unknown key fails the request.
"""

from specpipe.core.endpoint import Endpoint, Model, Serving, Tensors
from specpipe.engine.vllm.triton_model import MODEL

TOKENIZER = f"{MODEL}/1/tokenizer"
_SAME = (
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "seed",
    "bad_words",
)
TENSORS = Tensors(
    prompt="text_input",
    max_tokens="max_tokens",
    stream="stream",
    exclude_prompt="exclude_input_in_output",
    answer="text_output",
    sampling="sampling_parameters",
    options={**{name: name for name in _SAME}, "stop_words": "stop", "end_id": "ignore_eos"},
    stop_tokens="stop_token_ids",
    flags=("return_num_input_tokens", "return_num_output_tokens", "return_finish_reason"),
    output_tokens="num_output_tokens",
    prompt_tokens="num_input_tokens",
    finish_reason="finish_reason",
)


def describe(serving: Serving) -> Endpoint:
    """Return the endpoint of a run: one text model; a request cannot change its speculation.

    The backend always answers in several responses, and reports no draft tokens.
    """
    model = Model(
        MODEL,
        TENSORS,
        batched=False,
        counts_new_tokens=True,
        speculates=serving.method != "none",
    )
    return Endpoint((model,), tokenizer=TOKENIZER)
