"""What TensorRT-LLM engines are refused for: every reason, with the nearest thing that works."""

import dataclasses

import pytest

from specpipe.core.divisibility import Parallel
from specpipe.core.drafters import RecurrentDrafter
from specpipe.core.model import Arithmetic, Experts
from specpipe.engine.tensorrt.backend import TensorRtBackend
from tests.helpers.trtllm_build import LLAMA_8B, request

QWEN = dataclasses.replace(LLAMA_8B, architecture="Qwen2ForCausalLM", num_medusa_heads=4)


QWEN3 = dataclasses.replace(LLAMA_8B, architecture="Qwen3ForCausalLM", upstream_since=(1, 0))
OLMO2 = dataclasses.replace(LLAMA_8B, architecture="Olmo2ForCausalLM", upstream_since=None)
WINDOWED = dataclasses.replace(LLAMA_8B, arithmetic=Arithmetic(sliding_windows=(4096, 0) * 16))
FEW_HEADS = dataclasses.replace(LLAMA_8B, num_attention_heads=36, num_key_value_heads=6)
ODD_MLP = dataclasses.replace(LLAMA_8B, intermediate_size=11007)
MIXTRAL = dataclasses.replace(LLAMA_8B, architecture="MixtralForCausalLM", moe=Experts(8, 2))
QWEN_MOE = dataclasses.replace(MIXTRAL, moe_shared_expert_intermediate_size=5632)
DRAFT = {"method": "draft_model", "draft_nodes": 4}
HEADS = dataclasses.replace(LLAMA_8B, num_medusa_heads=4, num_medusa_layers=1)
MEDUSA = {"method": "medusa", "draft_nodes": 63, "model": HEADS}
NET = RecurrentDrafter(num_layers=2, exit_dim=8192, is_rnn=True)
REDRAFTER = {"method": "redrafter", "draft_nodes": 25,
             "model": dataclasses.replace(LLAMA_8B, redrafter=NET)}  # fmt: skip
QWEN_NET = dataclasses.replace(QWEN, num_medusa_heads=0, redrafter=NET)
GEMMA_NET = dataclasses.replace(LLAMA_8B, architecture="GemmaForCausalLM", redrafter=NET)
WINDOWED_NET = dataclasses.replace(WINDOWED, redrafter=NET)
ODD_NET = dataclasses.replace(LLAMA_8B, redrafter=dataclasses.replace(NET, exit_dim=8190))
A10 = {"gpu": "A10", "sm": 86}
A100 = {"gpu": "A100-80GB-SXM", "sm": 80}
B200 = {"gpu": "B200", "sm": 100}
B300 = {"gpu": "B300", "sm": 103}
RTX_5090 = {"gpu": "RTX-5090", "sm": 120}


def weights(name: str) -> dict[str, object]:
    return {"quantization": name}


def ranks(tp: int, pp: int = 1) -> dict[str, object]:
    return {"parallel": Parallel(tp, pp)}


def cache(name: str) -> dict[str, object]:
    return {"kv_cache_quantization": name}


@pytest.mark.parametrize(
    ("changes", "reason", "hint"),
    [
        ({"method": "prompt_lookup"}, "does not support method prompt_lookup",
         "backend: llmapi or backend: openvino"),
        ({"method": "hybrid"}, "does not support method hybrid", "use backend: openvino"),
        ({"release": "9.9"}, "tensorrt_llm is '9.9'", "for this backend: 1.2.1, 0.18.2; remove"),
        ({"release": "1.3.0rc22"}, "1.3.0rc22 no longer builds engines", "to use 1.2.1"),
        ({"release": "1.1.0"}, "builds no engines with TensorRT-LLM 1.1.0", "backend: llmapi"),
        ({"release": "0.18.2", "model": QWEN3}, "supports Qwen3ForCausalLM since 1.0",
         "to use 1.2.1"),
        ({"model": OLMO2}, "no known release of TensorRT-LLM builds engines of Olmo2ForCausalLM",
         "use backend: openvino, or backend: llmapi if"),
        ({"method": "lookahead"}, "would draft no tokens", "raise the sizes"),
        ({"method": "lookahead", "draft_nodes": 83, "release": "0.18.2"},
         "cannot configure method lookahead", "to use 1.2.1"),
        ({"gpu": None, "sm": None}, "engine.gpu is not given", "H100-SXM"),
        ({"gpu": "RTX-5090", "sm": 120, "release": "0.18.2"}, "known to support RTX-5090", "1.2.1"),
        ({"dtype": "float32"}, "engine.dtype is float32", "bfloat16"),
        ({**A100, **weights("fp8")}, "does not support fp8", "int8"),
        ({**A10, **cache("fp8")}, "does not support fp8, which the config sets for the KV cache",
         "kv_cache_quantization: none"),
        (weights("nvfp4"), "does not support nvfp4", "10.0 or more"),
        ({**weights("nvfp4"), "release": "0.18.2"}, "builds no nvfp4 engines", "use fp8"),
        ({**weights("int4_awq"), "model": MIXTRAL, "release": "0.18.2"},
         "0.18.2 does not support int4_awq experts", "to use 1.2.1, or use fp8"),
        ({**weights("int4_awq"), "model": QWEN_MOE}, "models with a shared expert", "fp8 or int4"),
        ({**B200, **weights("int8")}, "refuses int8 weights on B200", "nvfp4"),
        ({**B200, **cache("int8")}, "refuses an int8 KV cache", "fp8"),
        ({**B200, **weights("int8_sq")}, "refuses int8_sq", "fp8"),
        ({**B200, **weights("int4_awq")}, "refuses int4_awq weights on B200", "nvfp4"),
        ({**B300, **weights("int4")}, "refuses int4 weights on B300", "nvfp4"),
        ({**DRAFT, **cache("int8")}, "paged-context attention, which an int8", "fp8 together"),
        ({**DRAFT, **cache("fp8")}, "an fp8 KV cache with unquantized weights",
         "quantization: fp8"),
        ({**MEDUSA, "model": HEADS, **weights("int8_sq")}, "not support SmoothQuant", "fp8"),
        ({**MEDUSA, "model": WINDOWED, "max_seq_len": 8192}, "discards rows of the KV cache",
         "engine.max_seq_len to 4096"),
        ({**REDRAFTER, "model": GEMMA_NET}, "not support ReDrafter with GemmaForCausalLM",
         "draft_model"),
        ({**REDRAFTER, "model": QWEN_NET, "release": "0.18.2"},
         "0.18.2 does not support ReDrafter with Qwen2ForCausalLM", "to use 1.2.1"),
        ({**REDRAFTER, **weights("int8_sq")}, "not support SmoothQuant", "fp8"),
        ({**REDRAFTER, **ranks(1, 2)}, "pipeline stages keep apart", "engine.tp_size"),
        ({**MEDUSA, **ranks(1, 2)}, "cannot be built with pipeline stages", "engine.tp_size"),
        ({**REDRAFTER, **ranks(4), "model": ODD_NET}, "ReDrafter's width of 8190", "to 1, 2"),
        ({**REDRAFTER, "model": WINDOWED_NET, "max_seq_len": 8192},
         "method redrafter discards rows of the KV cache", "engine.max_seq_len to 4096"),
        (ranks(3), "32 attention heads do not divide by engine.tp_size", "8 or 16"),
        ({**ranks(2), "model": ODD_MLP}, "inner width of 11007", "tp_size"),
        ({**ranks(4), "model": FEW_HEADS}, "6 key-value heads can neither", "tp_size"),
        (ranks(1, 5), "32 layers do not divide by engine.pp_size, which is 5", "pp_size"),
        (ranks(32), "more than two machines", "lower"),
        (ranks(16), "spans machines of 8 GPUs", "tp_size: 8 and engine.pp_size: 2"),
    ],
)  # fmt: skip
def test_refused(changes: dict[str, object], reason: str, hint: str) -> None:
    found = TensorRtBackend().check(request(**changes))
    assert any(reason in r.reason and hint in r.hint for r in found), found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        DRAFT,
        {**DRAFT, **weights("fp8"), **cache("fp8")},
        {**MEDUSA, **weights("int8")},
        {**MEDUSA, "model": QWEN},
        {**MEDUSA, "model": QWEN, "release": "0.18.2"},
        {"method": "lookahead", "draft_nodes": 83},
        {**MEDUSA, "release": "0.18.2"},
        REDRAFTER,
        {**REDRAFTER, **weights("fp8"), **cache("fp8"), **ranks(8)},
        {**REDRAFTER, "release": "0.18.2"},
        {**REDRAFTER, "model": QWEN_NET},
        {**A100, **weights("int8_sq"), **cache("int8")},
        {**B200, **weights("nvfp4"), **cache("fp8")},
        {**RTX_5090, **weights("int8"), **cache("int8")},
        {**RTX_5090, **weights("int4")},
        {**RTX_5090, **weights("int4_awq")},
        {**RTX_5090, **weights("int8_sq")},
        ranks(8),
        ranks(8, 2),
        {**weights("int4_awq"), "model": MIXTRAL},
        {**weights("fp8"), "model": QWEN_MOE, "release": "0.18.2"},
        {"gpu": "unheard-of", "sm": None},  # `plan` reports that it is unknown
    ],
)
def test_not_refused(changes: dict[str, object]) -> None:
    assert TensorRtBackend().check(request(**changes)) == []


def test_all_reasons_come_at_once() -> None:
    asked = request(method="hybrid", dtype="float32", parallel=Parallel(3, 5), quantization="nvfp4")
    assert len(TensorRtBackend().check(asked)) == 6
