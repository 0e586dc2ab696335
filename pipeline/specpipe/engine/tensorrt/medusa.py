"""Requirements of TensorRT-LLM's Medusa engines for a target: `tensorrt_llm/models/medusa`.

Taken from the sources of TensorRT-LLM 0.17 and 1.x; nothing here was run on a GPU. The class of
0.17 takes a Qwen2 target for a Llama model with biases of query, key and value, which computes the
same. That of 0.18.2 chooses between the two by the same expression.
"""

from specpipe.core.errors import Rejection
from specpipe.engine.backend import BuildRequest

BASES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
_OTHER_WAYS = "use method: draft_model or lookahead, or backend: openvino"


def check_medusa(request: BuildRequest) -> list[Rejection]:
    """Return every reason why a target with Medusa heads cannot be built as a Medusa engine.

    Empty without heads.
    """
    if not request.model.num_medusa_heads:
        return []
    return [
        *_check_base(request.model.architecture),
        *_check_stages(request.engine.parallel.pp_size),
    ]


def _check_stages(pp_size: int) -> list[Rejection]:
    """Refuse pipeline stages: `GenericMedusaForCausalLM.forward` unpacks three values on each."""
    if pp_size == 1:
        return []
    return [
        Rejection(
            "TensorRT-LLM's Medusa model cannot be built with pipeline stages: all stages but the "
            f"last fail (models/medusa/model.py), but engine.pp_size is {pp_size}",
            "set engine.pp_size to 1, and spread the model with engine.tp_size",
        )
    ]


def _check_base(architecture: str) -> list[Rejection]:
    if architecture == "MixtralForCausalLM":
        return [
            Rejection(
                "TensorRT-LLM's Medusa model uses one activation for heads and experts, and the "
                "experts' gated activation would halve the width of the heads",
                _OTHER_WAYS,
            )
        ]
    if architecture not in BASES:
        return [
            Rejection(
                f"TensorRT-LLM's Medusa model cannot be built on {architecture}, only on "
                f"{', '.join(BASES)}",
                _OTHER_WAYS,
            )
        ]
    return []
